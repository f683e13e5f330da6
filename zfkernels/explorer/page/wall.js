// The wall: a layer's maps, each drawn when it scrolls into view.
import { byId, make, number, percent, showPiece } from "./dom.js";
import { dataOf, dataUrl, giveUp, liveAnswer, pictureCame, sayTime } from "./source.js";

const ORDERS = {
  strength: "strength",
  purity: "class purity",
  likeness: "likeness",
  random: "little change by random weights",
  number: "number",
};
let wall = null; // what is shown: {index, layer, words, query, shown, names}
let chosenOrder = "strength";

const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      wanted.push(entry.target);
    }
    drawWanted();
  },
  { rootMargin: "200px" },
);

// Two pictures at a time: the server makes one after the other, and connections stay free for what is clicked.
const AT_ONCE = 2;
const wanted = []; // tiles that came into view
const wallComing = new Set(); // pictures on their way
let holds = 0; // pages whose own pictures come first

function drawWanted() {
  while (!holds && wallComing.size < AT_ONCE && wanted.length) {
    const tile = wanted.shift();
    if (tile.isConnected) drawOne(tile);
  }
}

// Waits until something was searched and no picture of the wall is on its way.
export async function wallDrawn() {
  do await new Promise((go) => setTimeout(go, 250));
  while (!wall.words.searched || holds || wanted.length || wallComing.size);
}

async function drawOne(tile) {
  const map = Number(tile.dataset.map);
  const sprite = wall.words.sprites && wall.words.sprites[map];
  const url = dataUrl(sprite ? `sprite/${wall.index}/${sprite[0]}.webp` : `tile/${wall.index}/${map}.webp`);
  if (await pictureCame(url, wallComing)) showPiece(tile, url, sprite ? sprite[1] : 0, sprite ? sprite[2] : 1);
  drawWanted();
}

// The wall waits until these pictures are drawn.
export async function holdWall(drawn) {
  holds += 1;
  await drawn;
  holds -= 1;
  drawWanted();
}

export async function showWall(network, index) {
  const began = performance.now();
  giveUp(wallComing);
  const layer = network.layers[index];
  const words = await dataOf(`layer/${index}`);
  sayTime(`the layer in ${Math.round(performance.now() - began)} ms`);
  const query = wall && wall.index === index ? wall.query : "";
  wall = { index, layer, words, query, shown: [], names: layer.answers ? network.classes : [] };
  const orders = Object.entries(ORDERS).map(([value, text]) =>
    make("option", { value, selected: value === chosenOrder }, text),
  );
  const sort = make("select", { id: "order", onchange: reorder }, ...orders);
  const find = make("input", {
    id: "find", type: "search", value: query, placeholder: "number or class", list: "classes", autocomplete: "off",
    oninput: refilter, onkeydown: openFirst,
  });
  const names = network.folders.map((name) => make("option", { value: name }));
  const classes = make("datalist", { id: "classes" }, ...names);
  const tools = make(
    "div",
    { class: "tools" },
    make("label", {}, "Sort by ", sort),
    make("label", {}, "Find ", find),
    classes,
    make("span", { class: "soft", id: "count", role: "status" }),
  );
  const heading = make("h2", {}, layer.name, " ", make("span", { class: "soft" }, `${layer.maps} maps`));
  const classed = network.folders.length ? ", and which part of its nine strongest pictures is of one class" : "";
  const explained = make(
    "p",
    { class: "soft" },
    `Left: the strongest activation projected to pixels (${layer.method}). Right: what it saw. Below: the map's number, ` +
      `its strongest activation${classed}.`,
  );
  const note = layer.note ? make("p", { class: "note" }, layer.note) : "";
  byId("wall").replaceChildren(heading, explained, note, tools, make("ul", { class: "tiles", onkeydown: moveFocus }));
  drawTiles();
  if (chosenOrder === "random") compareAll(wall);
}

function reorder(event) {
  chosenOrder = event.target.value;
  drawTiles();
  if (chosenOrder === "random") compareAll(wall);
}

// How alike each map's picture stays under random weights, some maps at a time, until another order or layer is chosen.
async function compareAll(mine) {
  const { words } = mine;
  if (words.random || !words.searched) return;
  const found = [];
  const bar = make("progress", { max: words.maps, value: 0, "aria-label": "maps compared" });
  byId("count").before(bar);
  try {
    while (found.length < words.maps) {
      if (mine !== wall || chosenOrder !== "random") return;
      found.push(...(await liveAnswer("likenesses", { layer: mine.index, first: found.length })));
      bar.value = found.length;
    }
    words.random = found;
    if (mine === wall) drawTiles();
  } finally {
    bar.remove();
  }
}

function refilter(event) {
  wall.query = event.target.value;
  drawTiles();
}

function openFirst(event) {
  if (event.key === "Enter" && wall.shown.length) location.hash = unitAddress(wall.shown[0]);
}

function unitAddress(map) {
  return `${encodeURIComponent(wall.layer.name)}/${map}`;
}

function sortedMaps() {
  const { maps, strength, purity, likeness, random } = wall.words;
  const numbers = Array.from({ length: maps }, (_, map) => map);
  const keys = {
    strength: (map) => -(strength[map] || 0),
    purity: (map) => -(purity[map] || 0) - 1e-9 * (strength[map] || 0),
    likeness: (map) => likeness[map] || 0,
    random: (map) => (random ? -(random[map] ?? -2) : 0),
    number: (map) => map,
  };
  const key = keys[chosenOrder];
  return numbers.sort((a, b) => key(a) - key(b) || a - b);
}

function isWanted(map) {
  const query = wall.query.trim().toLowerCase();
  if (!query) return true;
  if (/^\d+$/.test(query)) return String(map) === query;
  return [wall.words.classes[map], wall.names[map]].some((name) => (name || "").toLowerCase().includes(query));
}

function drawTiles() {
  const { words } = wall;
  const known = words.sprites ? (map) => words.sprites[map] : (map) => words.strength[map] > 0;
  wall.shown = sortedMaps().filter(isWanted).filter((map) => !words.sprites || known(map));
  const list = byId("wall").querySelector(".tiles");
  list.style.setProperty("--shape", (2 * wall.layer.field[1]) / wall.layer.field[0]);
  list.replaceChildren(...wall.shown.map((map, place) => tileOf(map, place === 0, known(map))));
  const silent = words.strength.filter((value) => value <= 0).length;
  const found = words.searched ? `over ${words.searched} pictures` : "the search has not reached it yet";
  byId("count").textContent = `${wall.shown.length} shown, ${silent} silent, ${found}`;
  for (const picture of list.querySelectorAll(".tile[data-map]")) observer.observe(picture);
}

function tileOf(map, isFirst, isKnown) {
  const { words, layer } = wall;
  const strength = words.strength[map];
  const name = words.classes[map];
  const said = isKnown ? `strongest ${number(strength)}` : words.searched ? "silent" : "not searched yet";
  const alike = chosenOrder === "random" && words.random ? words.random[map] : null;
  const under = name ? `${percent(words.purity[map])} ${name}` : "\u00a0";
  const pure = name ? `, ${percent(words.purity[map])} ${name}` : "";
  const picture = isKnown
    ? make("span", { class: "tile", "data-map": map, "aria-hidden": "true" })
    : make("span", { class: "tile silent", "aria-hidden": "true" }, words.searched ? "silent" : "…");
  const value = make("span", { class: "soft" }, isKnown ? number(strength) : "");
  const mapName = wall.names[map] ? `${map} ${wall.names[map]}` : `${map}`;
  const link = make(
    "a",
    {
      href: `#${unitAddress(map)}`, tabIndex: isFirst ? 0 : -1, "data-unit": map,
      "aria-label": `${layer.name} map ${mapName}, ${said}${pure}: its projection beside the patch that caused it`,
    },
    picture,
    make("span", { class: "caption" }, make("b", {}, mapName), " ", value),
    make("span", { class: "caption soft" }, alike === null ? under : `correlation ${alike.toFixed(2)}`),
  );
  return make("li", {}, link);
}

// Arrow keys move among the tiles; up and down by a row.
function moveFocus(event) {
  const links = [...event.currentTarget.querySelectorAll("a")];
  const at = links.indexOf(document.activeElement);
  if (at < 0 || document.body.dataset.open === "unit") return;
  const top = links[0].getBoundingClientRect().top;
  const columns = links.filter((link) => Math.abs(link.getBoundingClientRect().top - top) < 2).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (!step || !links[at + step]) return;
  event.preventDefault();
  event.stopPropagation();
  focusOn(links[at + step]);
}

function focusOn(link) {
  for (const other of byId("wall").querySelectorAll(".tiles a")) other.tabIndex = -1;
  link.tabIndex = 0;
  link.focus();
}

export function markUnit(map) {
  for (const link of byId("wall").querySelectorAll(".tiles a")) {
    if (Number(link.dataset.unit) === map) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

export function focusUnit(map) {
  const link = byId("wall").querySelector(`.tiles a[data-unit="${map}"]`) || byId("wall").querySelector(".tiles a");
  if (link) focusOn(link);
}

// The map before or after one in the order shown; null at an end.
export function neighbourOf(map, step) {
  const at = wall.shown.indexOf(map);
  const next = at < 0 ? wall.shown[0] : wall.shown[at + step];
  return next === undefined ? null : next;
}
