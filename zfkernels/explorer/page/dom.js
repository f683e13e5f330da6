// Elements. Text is always set as text: nothing that a file or a folder is called becomes markup.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && name !== "role" && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function byId(name) {
  return document.getElementById(name);
}

// Piece `index` of `count` pieces below one another, as an element's background.
export function showPiece(element, url, index, count) {
  element.style.backgroundImage = `url("${url}")`;
  element.style.backgroundSize = `100% ${100 * count}%`;
  element.style.backgroundPosition = `0 ${count > 1 ? (100 * index) / (count - 1) : 0}%`;
}

// A half-open box (top, left, bottom, right) of a picture of this size, over it.
export function placeBox(element, [top, left, bottom, right], [height, width]) {
  element.style.top = `${(100 * top) / height}%`;
  element.style.left = `${(100 * left) / width}%`;
  element.style.height = `${(100 * (bottom - top)) / height}%`;
  element.style.width = `${(100 * (right - left)) / width}%`;
}

export function number(value) {
  const isTiny = value !== 0 && Math.abs(value) < 1e-3;
  return isTiny ? value.toExponential(2) : Number(value.toPrecision(3)).toString();
}

export function percent(part) {
  return `${Math.round(100 * part)}%`;
}

export function isTyping(target) {
  return target instanceof Element && target.closest("input, select, textarea, .stage") !== null;
}

// A row of a bar chart: name, a bar, and its number as text; `ghost`: a second, pale bar behind it.
export function barRow(name, part, text, ghost = null) {
  const bar = make("span", { class: "bar" });
  bar.style.width = percent(Math.min(1, Math.max(0, part)));
  const track = make("span", { class: "track" }, bar);
  if (ghost !== null) {
    const pale = make("span", { class: "bar ghost" });
    pale.style.width = percent(Math.min(1, Math.max(0, ghost)));
    track.prepend(pale);
  }
  return make("li", {}, make("span", { class: "bar-name" }, name), track, make("span", { class: "bar-number" }, text));
}
