"use strict";
{
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];
  const button = document.getElementById("theme");
  const kept = () => { try { return localStorage.getItem("bvsa-theme"); } catch { return null; } };
  const setTheme = (name) => {
    if (name === "system") delete root.dataset.theme; else root.dataset.theme = name;
    button.textContent = `◐ ${name}`;
    button.setAttribute("aria-label", `theme: ${name}`);
    try { localStorage.setItem("bvsa-theme", name); } catch { /* a page without storage forgets */ }
  };
  setTheme(themes.includes(kept()) ? kept() : "system");
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
  let found = [];

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const image = (number, alt) => {
    const [, , source] = images[number];
    if (!source) return element("div", "blank");
    const made = element("img");
    Object.assign(made, { src: source, alt, loading: "lazy", width: 80, height: 80 });
    return made;
  };

  const card = (of, query) => {
    const right = of.right[query];
    const rank = of.ranks[query];
    const [concept, name] = images[right];
    const item = element("li", "query");
    item.dataset.concept = concept;
    const title = element("p", "asked", concept);
    title.append(element("span", "rank", `rank ${rank}`));
    title.title = name;
    const seen = image(right, `seen: ${concept}`);
    const best = element("ol", "best");
    of.best[query].forEach((number, place) => {
      const hit = number === right;
      const [what, file] = images[number];
      const one = element("li", hit ? "right" : "wrong");
      one.title = file;
      one.append(
        image(number, ""),
        element("span", "what", `${hit ? "✓" : "✗"} ${what}`),
        element("span", "score", of.scores[query][place].toFixed(3)),
        element("span", "hidden", hit ? "right" : "wrong"),
      );
      best.append(one);
    });
    item.append(title, seen, best);
    return item;
  };

  const add = () => {
    const of = runs[run.value];
    const from = list.childElementCount;
    list.append(...found.slice(from, from + STEP).map((query) => card(of, query)));
    const left = found.length - list.childElementCount;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(STEP, left)} more of ${left}`;
    return from;
  };

  const KEPT = {
    "": () => true,
    right: (rank) => rank === 1,
    close: (rank) => rank <= 5,
    wrong: (rank) => rank > 1,
    missed: (rank) => rank > 5,
  };

  const update = () => {
    const of = runs[run.value];
    const asked = q.value.trim().toLowerCase().replaceAll("_", " ");
    const concept = (query) => images[of.right[query]][0];
    const inSearch = of.right.map((_, query) => query).filter((query) => concept(query).toLowerCase().includes(asked));
    found = inSearch.filter((query) => KEPT[show.value](of.ranks[query]));
    const order = {
      rank: (a, b) => of.ranks[a] - of.ranks[b] || a - b,
      worst: (a, b) => of.ranks[b] - of.ranks[a] || a - b,
      name: (a, b) => concept(a).localeCompare(concept(b)) || a - b,
    }[sort.value];
    if (order) found.sort(order);
    list.replaceChildren();
    add();
    const share = (k) => found.filter((query) => of.ranks[query] <= k).length;
    count.textContent = `${found.length} of ${of.right.length} recordings; the right image comes first for ${share(1)} and is among five for ${share(5)}.`;
  };

  const toHash = () => {
    const told = new URLSearchParams();
    if (q.value) told.set("q", q.value);
    if (show.value) told.set(show.value, "1");
    if (sort.value) told.set("sort", sort.value);
    if (run.value !== "0") told.set("run", run.value);
    history.replaceState(null, "", `#${told.size ? told : "retrieved"}`);
  };

  const fromHash = () => {
    const told = new URLSearchParams(location.hash.slice(1));
    if (!["q", "sort", "run", ...Object.keys(KEPT)].some((name) => name && told.has(name))) return false;
    q.value = told.get("q") ?? "";
    show.value = Object.keys(KEPT).find((name) => name && told.has(name)) ?? "";
    sort.value = ["rank", "worst", "name"].find((name) => name === told.get("sort")) ?? "";
    run.value = runs[told.get("run")] ? told.get("run") : "0";
    return true;
  };

  runs.forEach(({ name }, number) => run.append(new Option(name, number)));
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { update(); toHash(); });
  more.addEventListener("click", () => list.children[add()].scrollIntoView({ block: "nearest" }));
  const shared = fromHash();
  update();
  if (shared) document.getElementById("retrieved").scrollIntoView({ behavior: "instant" });
  addEventListener("hashchange", () => { if (fromHash()) update(); });
}
