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

const { runs, images } = JSON.parse(document.getElementById("data").textContent);
if (runs.length) {
  const STEP = 24;
  const form = document.getElementById("filters");
  const list = document.getElementById("queries");
  const more = document.getElementById("more");
  const count = document.getElementById("count");
  const { run, q, show, sort } = form.elements;
  let queries = [];

  const element = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const image = (index, alt) => {
    const [, , source] = images[index];
    if (!source) return element("div", "blank");
    const node = element("img");
    Object.assign(node, { src: source, alt, loading: "lazy", width: 80, height: 80 });
    return node;
  };

  const card = (current, query) => {
    const target = current.targets[query];
    const rank = current.ranks[query];
    const [concept, name] = images[target];
    const item = element("li", "query");
    item.dataset.concept = concept;
    const title = element("p", "concept", concept);
    title.append(element("span", "rank", `rank ${rank}`));
    title.title = name;
    const seen = image(target, `seen: ${concept}`);
    const best = element("ol", "best");
    current.top[query].forEach((index, place) => {
      const hit = index === target;
      const [what, file] = images[index];
      const entry = element("li", hit ? "correct" : "wrong");
      entry.title = file;
      entry.append(
        image(index, ""),
        element("span", "what", `${hit ? "✓" : "✗"} ${what}`),
        element("span", "score", current.scores[query][place].toFixed(3)),
        element("span", "hidden", hit ? "correct" : "wrong"),
      );
      best.append(entry);
    });
    item.append(title, seen, best);
    return item;
  };

  const add = () => {
    const current = runs[run.value];
    const from = list.childElementCount;
    list.append(...queries.slice(from, from + STEP).map((query) => card(current, query)));
    const left = queries.length - list.childElementCount;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(STEP, left)} more of ${left}`;
    return from;
  };

  const FILTERS = {
    "": () => true,
    right: (rank) => rank === 1,
    close: (rank) => rank <= 5,
    wrong: (rank) => rank > 1,
    missed: (rank) => rank > 5,
  };

  const update = () => {
    const current = runs[run.value];
    const text = q.value.trim().toLowerCase().replaceAll("_", " ");
    const concept = (query) => images[current.targets[query]][0];
    const matches = current.targets.map((_, query) => query).filter((query) => concept(query).toLowerCase().includes(text));
    queries = matches.filter((query) => FILTERS[show.value](current.ranks[query]));
    const order = {
      rank: (a, b) => current.ranks[a] - current.ranks[b] || a - b,
      worst: (a, b) => current.ranks[b] - current.ranks[a] || a - b,
      name: (a, b) => concept(a).localeCompare(concept(b)) || a - b,
    }[sort.value];
    if (order) queries.sort(order);
    list.replaceChildren();
    add();
    const share = (k) => queries.filter((query) => current.ranks[query] <= k).length;
    count.textContent = `${queries.length} of ${current.targets.length} recordings; the correct image is first for ${share(1)} and in the top 5 for ${share(5)}.`;
  };

  const toHash = () => {
    const params = new URLSearchParams();
    if (q.value) params.set("q", q.value);
    if (show.value) params.set(show.value, "1");
    if (sort.value) params.set("sort", sort.value);
    if (run.value !== "0") params.set("run", run.value);
    history.replaceState(null, "", `#${params.size ? params : "retrieved"}`);
  };

  const fromHash = () => {
    const params = new URLSearchParams(location.hash.slice(1));
    if (!["q", "sort", "run", ...Object.keys(FILTERS)].some((name) => name && params.has(name))) return false;
    q.value = params.get("q") ?? "";
    show.value = Object.keys(FILTERS).find((name) => name && params.has(name)) ?? "";
    sort.value = ["rank", "worst", "name"].find((name) => name === params.get("sort")) ?? "";
    run.value = Object.keys(runs).includes(params.get("run")) ? params.get("run") : "0";
    return true;
  };

  runs.forEach(({ name }, index) => run.append(new Option(name, index)));
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { update(); toHash(); });
  more.addEventListener("click", () => list.children[add()].scrollIntoView({ block: "nearest" }));
  const shared = fromHash();
  update();
  if (shared) document.getElementById("retrieved").scrollIntoView({ behavior: "instant" });
  addEventListener("hashchange", () => { if (fromHash()) update(); });
}
