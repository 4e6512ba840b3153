"use strict";
{
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];
  const button = document.getElementById("theme");
  const stored = () => { try { return localStorage.getItem("bvsa-theme"); } catch { return null; } };
  const setTheme = (name) => {
    if (name === "system") delete root.dataset.theme; else root.dataset.theme = name;
    button.textContent = `◐ ${name}`;
    button.setAttribute("aria-label", `theme: ${name}`);
    try { localStorage.setItem("bvsa-theme", name); } catch { /* without storage the choice lasts until the page is closed */ }
  };
  setTheme(themes.includes(stored()) ? stored() : "system");
  button.hidden = false;
  button.addEventListener("click", () => {
    setTheme(themes[(themes.indexOf(root.dataset.theme ?? "system") + 1) % themes.length]);
  });
}

const element = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

{
  const table = document.querySelector(".results");
  const body = table.tBodies[0];
  const parts = [...document.querySelectorAll("[data-rows]")].map((node) => [node, node.dataset.rows.split(" ")]);
  const off = new Set();

  const value = (row, column) => {
    let at = 0;
    for (const cell of row.cells) {
      if (at === column) return cell.dataset.value;
      at += cell.colSpan;
    }
    return undefined;
  };
  const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);

  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const name = head.textContent;
    const button = element("button", "sort", name);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = head.ariaSort ? head.ariaSort === "descending" : !head.classList.contains("n") || name === "median rank";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [row, value(row, column)]);
      rows.sort(([first, a], [second, b]) => {
        const apart = first.classList.contains("rescored") - second.classList.contains("rescored");
        if (apart) return apart;
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
        return (ascending ? 1 : -1) * compare(a, b);
      });
      body.append(...rows.map(([row]) => row));
    });
  });

  for (const row of body.rows) {
    const number = row.dataset.row;
    if (!parts.some(([, rows]) => rows.includes(number))) continue;
    const box = element("input");
    Object.assign(box, { type: "checkbox", checked: true });
    box.setAttribute("aria-label", `show ${row.cells[0].dataset.value} in figures`);
    row.cells[0].prepend(box);
    box.addEventListener("change", () => {
      if (box.checked) off.delete(number); else off.add(number);
      row.classList.toggle("off", !box.checked);
      for (const [node, rows] of parts) node.classList.toggle("gone", rows.every((each) => off.has(each)));
    });
    const point = (on) => { for (const [node, rows] of parts) node.classList.toggle("faint", on && !rows.includes(number)); };
    for (const event of ["pointerenter", "focusin"]) row.addEventListener(event, () => point(true));
    for (const event of ["pointerleave", "focusout"]) row.addEventListener(event, () => point(false));
  }
  for (const node of document.querySelectorAll(".script")) node.hidden = false;
}

const { runs, images, recordings, pairs, groups } = JSON.parse(document.getElementById("data").textContent);
if (runs.length) {
  const STEP = 12;
  const form = document.getElementById("filters");
  const list = document.getElementById("queries");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  const { run, with: other, q, show, sort, group, time } = form.elements;
  let items = [];

  const bytes = (text) => new Int8Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const decoded = recordings.map((each) => ({ ...each, values: bytes(each.values), map: bytes(each.map) }));

  const image = (index, alt) => {
    const [, , source] = images[index];
    if (!source) return element("div", "blank");
    const node = element("img");
    Object.assign(node, { src: source, alt, loading: "lazy", width: 96, height: 96 });
    return node;
  };

  const figure = (className, node, text) => {
    const result = element("figure", className);
    result.append(node, element("figcaption", "", text));
    return result;
  };

  const { namespaceURI } = document.querySelector(".figure svg");
  const svg = (tag, attributes) => {
    const node = document.createElementNS(namespaceURI, tag);
    for (const [name, text] of Object.entries(attributes)) node.setAttribute(name, text);
    return node;
  };

  /* Values (channels) of a recording at one time; the spread over channels at every time; the time where it peaks. */
  const at = (all, query, sample) => {
    const length = all.times.length;
    const start = query * all.channels * length;
    return Array.from({ length: all.channels }, (_, channel) => all.values[start + channel * length + sample]);
  };
  const spread = (all, query) => all.times.map((_, sample) => {
    const values = at(all, query, sample);
    const mean = values.reduce((a, b) => a + b) / values.length;
    return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
  });
  const peak = (all, query) => {
    const sizes = spread(all, query);
    return sizes.indexOf(Math.max(...sizes));
  };

  const evoked = (all, query) => {
    const node = svg("svg", { viewBox: "0 0 100 60", preserveAspectRatio: "none", role: "img", "aria-label": `evoked response, strongest at ${all.times[peak(all, query)]} ms` });
    const width = Math.max(1, all.times.length - 1);
    const path = (values) => "M" + values.map((value, i) => `${(100 * i / width).toFixed(1)} ${(30 - 29 * value / all.limit).toFixed(1)}`).join("L");
    const samples = all.times.map((_, sample) => at(all, query, sample));
    node.append(svg("path", { d: "M0 30L100 30", class: "zero" }));
    for (let channel = 0; channel < all.channels; channel++) node.append(svg("path", { d: path(samples.map((values) => values[channel])) }));
    node.append(svg("path", { d: path(spread(all, query)), class: "spread" }), svg("path", { class: "cursor" }));
    return node;
  };

  const HIGH = [178, 24, 43], LOW = [33, 102, 172], ZERO = [247, 247, 247];
  const drawMap = (canvas, all, values) => {
    const { side, map } = all;
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(side, side);
    const pixels = Array.from({ length: side * side }, (_, pixel) => {
      const from = pixel * values.length;
      return map[from] === -128 ? NaN : values.reduce((sum, value, i) => sum + value * map[from + i], 0);
    });
    const limit = Math.max(1, ...pixels.filter((value) => !isNaN(value)).map(Math.abs));
    pixels.forEach((value, pixel) => {
      if (isNaN(value)) return;
      const share = Math.abs(value) / limit;
      const end = value > 0 ? HIGH : LOW;
      picture.data.set([...ZERO.map((zero, i) => zero + share * (end[i] - zero)), 255], 4 * pixel);
    });
    context.putImageData(picture, 0, 0);
  };

  for (const each of decoded) {
    const sizes = each.values.map(Math.abs).sort();
    each.limit = Math.max(1, sizes[Math.floor(0.999 * (sizes.length - 1))]);
  }

  const recording = (all, query) => {
    const line = evoked(all, query);
    const units = all.units ? ` ${all.units}` : "";
    const panels = [figure("evoked", line, `recording, ±${(all.scale * all.limit / 127).toPrecision(2)}${units}`)];
    const canvas = element("canvas");
    const map = figure("map", canvas, "");
    const head = svg("svg", { viewBox: "-130 -130 260 260", "aria-hidden": "true" });
    head.append(svg("circle", { r: 100 }), svg("path", { d: "M-14 -99L0 -118L14 -99" }));
    map.append(head);
    if (all.side) panels.push(map);
    canvas.setAttribute("role", "img");
    const point = (sample) => {
      const x = 100 * sample / Math.max(1, all.times.length - 1);
      line.querySelector(".cursor").setAttribute("d", `M${x} 0L${x} 60`);
      map.querySelector("figcaption").textContent = `${all.times[sample]} ms`;
      canvas.setAttribute("aria-label", `topographic map at ${all.times[sample]} ms`);
      if (all.side) drawMap(canvas, all, at(all, query, sample));
    };
    const rest = () => point(time.value === "" ? peak(all, query) : Math.min(Number(time.value), all.times.length - 1));
    rest();
    line.addEventListener("pointermove", (event) => {
      const { left, width } = line.getBoundingClientRect();
      const sample = Math.round((event.clientX - left) / width * (all.times.length - 1));
      point(Math.min(all.times.length - 1, Math.max(0, sample)));
    });
    line.addEventListener("pointerleave", rest);
    return panels;
  };

  const found = (current, query) => {
    const best = element("ol", "best");
    current.top[query].forEach((index, place) => {
      const hit = index === current.targets[query];
      const [what, file] = images[index];
      const entry = element("li", hit ? "correct" : "wrong");
      entry.title = file;
      entry.append(
        image(index, ""),
        element("span", "what", hit ? `✓ ${what}` : what),
        element("span", "score", current.scores[query][place].toFixed(3)),
        element("span", "hidden", hit ? "correct" : "wrong"),
      );
      best.append(entry);
    });
    return best;
  };

  const card = (query) => {
    const current = runs[run.value];
    const target = current.targets[query];
    const [concept, name] = images[target];
    const item = element("li", "query");
    item.dataset.concept = concept;
    const title = element("p", "concept", concept);
    title.append(element("span", "rank", `rank ${current.ranks[query]}`));
    title.title = name;
    const seen = element("div", "seen");
    seen.append(figure("", image(target, `seen: ${concept}`), "seen"));
    if (current.views.length) seen.append(figure("", image(current.views[query], `${concept}, ${current.level}`), current.level));
    if (current.recordings !== null) seen.append(...recording(decoded[current.recordings], query));
    item.append(title, seen, found(current, query));
    if (compared()) {
      const second = runs[other.value];
      const label = element("p", "other", second.name);
      label.append(element("span", "rank", `rank ${second.ranks[query]}`));
      item.append(label, found(second, query));
    }
    return item;
  };

  const heading = ({ title, size }) => {
    const item = element("li", "group");
    item.append(element("h3", "", `${title} (${size})`));
    return item;
  };

  const add = () => {
    const from = list.childElementCount;
    list.append(...items.slice(from, from + STEP).map((item) => (typeof item === "number" ? card(item) : heading(item))));
    const left = items.slice(list.childElementCount).filter((item) => typeof item === "number").length;
    more.hidden = left === 0;
    more.textContent = `Show more (${left} left)`;
    return from;
  };

  /* Counts and p of the chosen pair of runs, in their order; undefined if they saw other images, or are the same run. */
  const compared = () => {
    if (other.value === "") return undefined;
    const pair = pairs[`${run.value} ${other.value}`];
    if (pair) return pair;
    const turned = pairs[`${other.value} ${run.value}`];
    return turned && [turned[0], turned[2], turned[1], turned[3], turned[4]];
  };

  const FILTERS = {
    "": () => true,
    right: (rank) => rank === 1,
    close: (rank) => rank <= 5,
    wrong: (rank) => rank > 1,
    missed: (rank) => rank > 5,
    first: (rank, second) => rank === 1 && second !== 1,
    second: (rank, second) => rank !== 1 && second === 1,
  };
  const ORDERS = ["rank", "worst", "name"];
  const GROUPS = ["rank", "found"];

  const ONCE = "other images, found first once each";
  const FIRST = "correct image found first";
  const grouped = (queries, current) => {
    if (!group.value) return queries;
    const byRank = group.value === "rank";
    const rankOf = (query) => groups.find(([low, high]) => current.ranks[query] >= low && (high === null || current.ranks[query] <= high))[2];
    const foundFirst = (query) => (current.top[query][0] === current.targets[query] ? FIRST : `found first: ${images[current.top[query][0]][0]}`);
    const gather = (title) => {
      const members = new Map();
      for (const query of queries) members.set(title(query), [...(members.get(title(query)) ?? []), query]);
      return [...members];
    };
    let members = gather(byRank ? (query) => `rank ${rankOf(query)}` : foundFirst);
    if (byRank) {
      const titles = groups.map(([, , name]) => `rank ${name}`);
      members.sort(([a], [b]) => titles.indexOf(a) - titles.indexOf(b));
    } else {
      const rare = members.filter(([title, each]) => each.length === 1 && title !== FIRST);
      members = members.filter((each) => !rare.includes(each)).sort(([, a], [, b]) => b.length - a.length);
      if (rare.length) members.push([ONCE, rare.flatMap(([, each]) => each)]);
    }
    return members.flatMap(([title, each]) => [{ title, size: each.length }, ...each]);
  };

  const update = () => {
    const current = runs[run.value];
    const pair = compared();
    const second = pair ? runs[other.value] : undefined;
    [...other.options].forEach((option) => {
      const known = pairs[`${run.value} ${option.value}`] ?? pairs[`${option.value} ${run.value}`];
      option.disabled = option.value !== "" && !known;
    });
    for (const option of show.options) option.disabled = ["first", "second"].includes(option.value) && !pair;
    const filter = show.selectedOptions[0].disabled ? FILTERS[""] : FILTERS[show.value];
    const text = q.value.trim().toLowerCase().replaceAll("_", " ");
    const concept = (query) => images[current.targets[query]][0];
    const matches = current.targets.map((_, query) => query).filter((query) => concept(query).toLowerCase().includes(text));
    const queries = matches.filter((query) => filter(current.ranks[query], second?.ranks[query]));
    const order = {
      rank: (a, b) => current.ranks[a] - current.ranks[b] || a - b,
      worst: (a, b) => current.ranks[b] - current.ranks[a] || a - b,
      name: (a, b) => concept(a).localeCompare(concept(b)) || a - b,
    }[sort.value];
    if (order) queries.sort(order);
    items = grouped(queries, current);
    list.replaceChildren();
    add();
    const share = (k) => queries.filter((query) => current.ranks[query] <= k).length;
    const sentences = [`${queries.length} of ${current.targets.length} recordings; the correct image is first for ${share(1)} and in the top 5 for ${share(5)}.`];
    if (pair) {
      const [both, one, another, neither, p] = pair;
      sentences.push(`Of all test images both runs find ${both}, only the first run ${one}, only the other ${another}, neither ${neither}; exact McNemar test of these two runs: p = ${p.toPrecision(2)}.`);
    }
    count.textContent = sentences.join(" ");
    const all = decoded[current.recordings];
    about.textContent = [
      current.views.length ? `${current.level}: the image as this run compares it, blurred by fovblur.` : "",
      all ? `Recording: mean over repetitions, ${all.times[0]} to ${all.times.at(-1)} ms after image onset, ${all.about}, the same vertical scale for all; orange: standard deviation over channels.` : "",
      all?.side ? "Map: seen from above, red positive, blue negative, each scaled to its largest value; it follows the pointer along the recording." : "",
    ].join(" ");
  };

  const toHash = () => {
    const params = new URLSearchParams();
    if (q.value) params.set("q", q.value);
    if (show.value) params.set(show.value, "1");
    if (sort.value) params.set("sort", sort.value);
    if (group.value) params.set("group", group.value);
    if (run.value !== "0") params.set("run", run.value);
    if (other.value) params.set("with", other.value);
    history.replaceState(null, "", `#${params.size ? params : "retrieved"}`);
  };

  const fromHash = () => {
    const params = new URLSearchParams(location.hash.slice(1));
    const named = (name, values) => values.find((each) => each === params.get(name));
    if (!["q", "sort", "group", "run", "with", ...Object.keys(FILTERS)].some((name) => name && params.has(name))) return false;
    q.value = params.get("q") ?? "";
    show.value = Object.keys(FILTERS).find((name) => name && params.has(name)) ?? "";
    sort.value = named("sort", ORDERS) ?? "";
    group.value = named("group", GROUPS) ?? "";
    run.value = named("run", Object.keys(runs)) ?? "0";
    other.value = named("with", Object.keys(runs)) ?? "";
    return true;
  };

  const about = document.getElementById("about");
  runs.forEach(({ name }, index) => {
    run.append(new Option(name, index));
    other.append(new Option(name, index));
  });
  other.parentElement.hidden = Object.keys(pairs).length === 0;
  const longest = decoded.reduce((longest, each) => (each.times.length > longest.length ? each.times : longest), []);
  longest.forEach((each, sample) => time.append(new Option(`at ${each} ms`, sample)));
  time.parentElement.hidden = !decoded.some((each) => each.side);
  for (const row of document.querySelectorAll("[data-pair]")) {
    const [first, second] = row.dataset.pair.split(" ");
    const button = element("button", "", "show");
    button.type = "button";
    button.setAttribute("aria-label", `show what ${runs[first].name} finds first and ${runs[second].name} does not`);
    button.addEventListener("click", () => {
      [run.value, other.value, show.value] = [first, second, "first"];
      update();
      toHash();
      form.scrollIntoView();
    });
    const cell = element("td");
    cell.append(button);
    row.append(cell);
  }
  for (const table of document.querySelectorAll(".pairs")) {
    const head = element("td");
    table.tHead.rows[0].append(head);
  }
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { update(); toHash(); });
  more.addEventListener("click", () => list.children[add()].scrollIntoView({ block: "nearest" }));
  const shared = fromHash();
  update();
  if (shared) document.getElementById("retrieved").scrollIntoView({ behavior: "instant" });
  addEventListener("hashchange", () => { if (fromHash()) update(); });
}
