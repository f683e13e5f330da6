// A unit's page: nine pairs, its histogram and classes, and the line of Python that makes it.
import { barRow, byId, make, number, percent, placeBox, showPiece } from "./dom.js";
import { drawBelow, drawEpochs, drawNoise } from "./tries.js";
import { dataOf, dataUrl, isLive, needsServer, pictureCame, sayTime } from "./source.js";
import { holdWall, neighbourOf } from "./wall.js";

const SVG = "http://www.w3.org/2000/svg";

export function unitHref(layer, map) {
  return `#${encodeURIComponent(layer)}/${map}`;
}

export async function showUnit(network, index, map) {
  const began = performance.now();
  const layer = network.layers[index];
  const words = await dataOf(`unit/${index}/${map}`);
  const answer = layer.answers ? make("span", { class: "soft" }, ` ${network.classes[map]}`) : null;
  const title = make("h2", { tabIndex: -1, id: "unit-title" }, `${layer.name}/${map}`, answer);
  const turns = [turnTo(layer, map, -1), turnTo(layer, map, 1), closing(layer)];
  const parts = [make("div", { class: "unit-head" }, title, ...turns)];
  if (!words.pairs.length) {
    const why = words.searched ? `No picture of the ${words.searched} searched drives this map.` : "Not searched yet.";
    byId("side").replaceChildren(...parts, make("p", {}, why));
    return title;
  }
  const { table, drawn } = pairTable(network, index, map, words, began);
  holdWall(drawn);
  parts.push(summary(words), table, histogramOf(words));
  if (words.classes.length) parts.push(classesOf(words));
  const place = { network, index, map, words, drawn };
  const tries = [["Trained to random", drawNoise], ["Epochs", drawEpochs], ["Strongest inputs below", drawBelow]];
  parts.push(...tries.map(([name, draw]) => (isLive ? draw(place) : needsServer(name))));
  parts.push(pythonOf(words));
  byId("side").replaceChildren(...parts.filter(Boolean));
  return title;
}

function turnTo(layer, map, step) {
  const next = neighbourOf(map, step);
  const [text, name] = step < 0 ? ["‹ Previous", "previous"] : ["Next ›", "next"];
  if (next === null) return make("button", { type: "button", disabled: true }, text);
  return make("a", { class: "button", href: unitHref(layer.name, next), rel: name }, text);
}

function closing(layer) {
  return make("a", { class: "button", href: `#${encodeURIComponent(layer.name)}`, id: "close" }, "Close ×");
}

function summary(words) {
  const { total, silent } = words.histogram;
  const driven = total ? `Driven by ${percent((total - silent) / total)} of ${total} pictures. ` : "";
  const [name, count] = words.classes[0] || [];
  const pure = name ? `${count} of its ${words.pairs.length} strongest are of class “${name}”. ` : "";
  return make("p", {}, `Strongest ${number(words.pairs[0].value)}. ${driven}${pure}`);
}

// The table, and a promise that its pictures are drawn, column after column.
function pairTable(network, index, map, words, began) {
  const methods = [network.layers[index].method, ...network.methods].filter((name, i, all) => all.indexOf(name) === i);
  const columns = Object.fromEntries(["patches", ...methods].map((name) => [name, []]));
  const heads = ["picture", ...methods].map((name) => make("th", { scope: "col" }, name));
  const rows = words.pairs.map((pair, rank) => {
    const [top, left, bottom, right] = pair.frame;
    const about = `patch of ${pair.name}, rows ${top} to ${bottom - 1}, columns ${left} to ${right - 1}`;
    // Anywhere in the row; where little room is left beside the table, only on the picture itself.
    const pointed = { onmouseenter: () => showWhole(network, pair), onmouseleave: hideWhole };
    const isWide = innerWidth >= 1000;
    const patch = make("button", {
      type: "button", class: "view", ...(isWide ? {} : pointed),
      "aria-label": `${about}, activation ${number(pair.value)}; shows the whole picture`,
      onfocus: () => showWhole(network, pair), onblur: hideWhole,
      onclick: () => isLive && (location.hash = `/picture/${pair.picture}`),
    });
    shape(patch, pair.frame);
    columns.patches.push(patch);
    const views = methods.map((method) => {
      const text = `${method} projection of ${words.layer} map ${map} in ${pair.name}`;
      const view = make("div", { class: "view", role: "img", "aria-label": text });
      shape(view, pair.frame);
      columns[method].push(view);
      return make("td", {}, view);
    });
    const caption = make("span", { class: "caption soft" }, `${number(pair.value)} ${pair.class}`);
    return make("tr", isWide ? pointed : {}, make("td", {}, patch, caption), ...views);
  });
  const drawn = drawColumns(`unit/${index}/${map}`, columns, began);
  const head = make("thead", {}, make("tr", {}, ...heads));
  const table = make("table", { class: "pairs" }, head, make("tbody", {}, ...rows));
  return { table, drawn };
}

// All columns are asked for at once, and made in this order: the patches, then what the wall shows, then the others.
async function drawColumns(path, columns, began) {
  const times = [];
  const column = async ([name, views]) => {
    const url = dataUrl(`${path}/${name}.webp`);
    if (!(await pictureCame(url))) return;
    views.forEach((view, rank) => showPiece(view, url, rank, views.length));
    if (name === "patches") return;
    times.push(Math.round(performance.now() - began));
    const all = times.length > 1 ? `, ${times.length} ways down in ${times.at(-1)} ms` : "";
    sayTime(`first projections in ${times[0]} ms${all}`);
  };
  await Promise.all(Object.entries(columns).map(column));
}

function shape(element, [top, left, bottom, right]) {
  element.style.aspectRatio = `${right - left} / ${bottom - top}`;
  if (Math.max(bottom - top, right - left) <= 56) element.classList.add("pixels");
}

export function showWhole(network, pair) {
  const whole = byId("whole");
  const image = whole.querySelector("img");
  image.src = dataUrl(`picture/${pair.picture}.webp`);
  image.alt = `the whole of ${pair.name}, with a frame around what the unit sees`;
  placeBox(whole.querySelector(".frame"), pair.box, network.size);
  whole.querySelector("figcaption").textContent = `${pair.name}${pair.class ? ` (${pair.class})` : ""}`;
  whole.hidden = false;
}

export function hideWhole() {
  byId("whole").hidden = true;
}

function drawn(tag, properties) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  return element;
}

function histogramOf(words) {
  const { counts, low, high, silent, total } = words.histogram;
  const most = Math.max(...counts, 1);
  const said = `strongest activations in ${total} pictures, from ${number(low)} to ${number(high)}; ${silent} silent`;
  const chart = drawn("svg", {
    viewBox: `0 0 ${counts.length * 10} 60`, preserveAspectRatio: "none",
    role: "img", "aria-label": `histogram of ${said}`,
  });
  counts.forEach((count, i) => {
    const height = (56 * count) / most;
    chart.append(drawn("rect", { x: i * 10 + 1, y: 60 - height, width: 8, height }));
  });
  const ends = [number(low), `${total - silent} pictures, at most ${most} a bar; ${silent} more silent`, number(high)];
  const below = make("p", { class: "ends soft" }, ...ends.map((text) => make("span", {}, text)));
  return make("section", {}, make("h3", {}, "How strongly each picture drives it"), chart, below);
}

function classesOf(words) {
  const rows = words.classes.map(([name, count]) => barRow(name, count / words.pairs.length, String(count)));
  return make("section", {}, make("h3", {}, "Classes of its strongest"), make("ul", { class: "bars" }, ...rows));
}

function pythonOf(words) {
  const code = make("code", {}, words.python.join("\n"));
  const copy = make("button", { type: "button", onclick: () => copied(copy, words.python.join("\n")) }, "Copy");
  return make("section", {}, make("h3", {}, "In Python ", copy), make("pre", { tabIndex: 0 }, code));
}

async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it to copy";
  }
}
