// A picture under the network: click a pixel for the units that see it, or drag a square that covers it.
import { barRow, byId, make, number, percent, placeBox } from "./dom.js";
import { dataOf, dataUrl, isLive, liveAnswer, livePost, needsServer } from "./source.js";
import { newest } from "./tries.js";
import { wallDrawn } from "./wall.js";

let network = null;
const view = { picture: 0, layer: 0, mode: "look", row: 0, column: 0, side: 0 };

export async function takeFile(file) {
  const said = byId("upload-said");
  try {
    const answer = await livePost("upload", file);
    location.hash = `/picture/u${-answer.picture}`;
  } catch (error) {
    if (said) said.textContent = error.message;
  }
}

// `name` is null where nobody has asked for a picture: then its first answer waits until the wall is drawn.
export function showPicture(shownNetwork, name, layerIndex) {
  network = shownNetwork;
  view.layer = layerIndex;
  if (!view.side) view.side = Math.max(1, Math.round(Math.min(...network.size) / 4));
  if (name) view.picture = name.startsWith("u") ? -Number(name.slice(1)) : Number(name);
  [view.row, view.column] = network.size.map((side) => Math.floor(side / 2));
  const title = make("h2", { tabIndex: -1 }, view.picture < 0 ? "Your picture" : `Picture ${view.picture} of the folder`);
  const back = `#${encodeURIComponent(network.layers[layerIndex].name)}`;
  const close = make("a", { class: "button", href: back, id: "close" }, "Close ×");
  const head = make("div", { class: "unit-head" }, title, close);
  if (!isLive) {
    const lacking = ["Drop a picture: which units see a pixel", "Drag a square: what the classes depend on"];
    byId("side").replaceChildren(head, ...lacking.map(needsServer));
    return title;
  }
  const hint = make("p", { class: "soft", id: "hint" });
  const called = make("p", { class: "soft", id: "called" });
  byId("side").replaceChildren(head, called, choosing(), modes(), stage(), hint, make("div", { id: "found" }));
  if (view.picture >= 0) sayName(called, view.picture);
  drawMode();
  if (name === null) actLater(byId("found"));
  else act();
  return title;
}

async function sayName(called, picture) {
  try {
    const words = await dataOf(`picture/${picture}`);
    called.textContent = `${words.name}${words.class ? ` (${words.class})` : ""}`;
  } catch (error) {
    called.textContent = error.message;
  }
}

// What nobody has asked for is computed when nothing else is.
async function actLater(found) {
  await wallDrawn();
  if (found.isConnected && !found.childElementCount) act();
}

function choosing() {
  const file = make("input", {
    type: "file", id: "file", accept: "image/*",
    onchange: () => file.files[0] && takeFile(file.files[0]),
  });
  const camera = make("button", { type: "button", id: "camera", onclick: fromCamera }, "Camera");
  const folder = make("input", {
    type: "number", min: 0, max: network.pictures - 1, value: Math.max(0, view.picture), id: "from-folder",
    onchange: () => (location.hash = `/picture/${Math.min(network.pictures - 1, Math.max(0, folder.value | 0))}`),
  });
  return make(
    "div", { class: "choose" },
    make("label", {}, "Drop a picture anywhere, or choose one: ", file),
    navigator.mediaDevices ? camera : null,
    make("label", {}, `or number 0 to ${network.pictures - 1} of the folder: `, folder),
    make("p", { id: "upload-said", role: "alert" }),
  );
}

async function fromCamera() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: true });
    const video = make("video", { srcObject: stream, muted: true, playsInline: true });
    await video.play();
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    for (const track of stream.getTracks()) track.stop();
    canvas.toBlob(takeFile, "image/jpeg", 0.95);
  } catch (error) {
    byId("upload-said").textContent = `no camera: ${error.message}`;
  }
}

function modes() {
  const choice = (value, text) => {
    const checked = view.mode === value;
    const button = make("input", { type: "radio", name: "mode", value, checked, onchange: () => setMode(value) });
    return make("label", {}, button, text);
  };
  const names = network.layers.map((layer, i) => make("option", { value: i, selected: i === view.layer }, layer.name));
  const layer = make("select", { id: "seen-layer", onchange: () => setLayer(Number(layer.value)) }, ...names);
  const side = make("input", {
    type: "range", id: "side-length", min: 1, max: Math.min(...network.size), value: view.side,
    oninput: () => setSide(Number(side.value)),
  });
  const looks = choice("look", "Look: which units see a pixel");
  const covers = choice("cover", "Cover: what becomes of the classes");
  return make(
    "div", { class: "modes" },
    make("fieldset", {}, make("legend", {}, "What a click does"), looks, covers),
    make("label", { class: "for-look" }, "Layer ", layer),
    make("label", { class: "for-cover" }, "Square ", side),
  );
}

function setLayer(layer) {
  view.layer = layer;
  act();
}

function setSide(side) {
  view.side = side;
  mark();
  act();
}

function setMode(mode) {
  view.mode = mode;
  drawMode();
  act();
}

function drawMode() {
  const { mode } = view;
  byId("side").dataset.mode = mode;
  const isLook = mode === "look";
  const moves = "move with the arrow keys";
  byId("hint").textContent = isLook ? `Click a pixel, or ${moves} and press Enter.` : `Drag the square, or ${moves}.`;
  mark();
}

function stage() {
  const url = view.picture < 0 ? `live/upload/${-view.picture}.webp` : dataUrl(`picture/${view.picture}.webp`);
  const alt = view.picture < 0 ? "your picture, as the network takes it" : `picture ${view.picture} of the folder`;
  const image = make("img", { src: url, alt, draggable: false });
  const box = make("span", { class: "frame", id: "mark" });
  const place = make("div", {
    class: "stage framed", tabIndex: 0, role: "application", "aria-label": "the picture: arrow keys move, Enter looks",
    onkeydown: byKey, onpointerdown: byPress, onpointermove: byDrag,
  }, image, box);
  place.style.aspectRatio = `${network.size[1]} / ${network.size[0]}`;
  return place;
}

function byPress(event) {
  event.currentTarget.setPointerCapture(event.pointerId);
  byPointer(event);
}

function byDrag(event) {
  if (event.buttons && view.mode === "cover") byPointer(event);
}

function byPointer(event) {
  const area = event.currentTarget.getBoundingClientRect();
  const [height, width] = network.size;
  const [down, across] = [(event.clientY - area.top) / area.height, (event.clientX - area.left) / area.width];
  moveTo(down * height, across * width);
  act();
}

function byKey(event) {
  const step = Math.max(1, Math.round(network.size[0] / 32));
  const moves = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] };
  const move = moves[event.key];
  if (move) {
    event.preventDefault();
    moveTo(view.row + move[0], view.column + move[1]);
    if (view.mode === "cover") act();
  } else if (event.key === "Enter") act();
}

function moveTo(row, column) {
  const [height, width] = network.size;
  view.row = Math.min(height - 1, Math.max(0, Math.floor(row)));
  view.column = Math.min(width - 1, Math.max(0, Math.floor(column)));
  mark();
}

function mark() {
  const side = view.mode === "cover" ? view.side : Math.max(1, Math.round(network.size[0] / 48));
  const top = view.row - Math.floor(side / 2);
  const left = view.column - Math.floor(side / 2);
  const [height, width] = network.size;
  const box = [Math.max(0, top), Math.max(0, left), Math.min(height, top + side), Math.min(width, left + side)];
  placeBox(byId("mark"), box, network.size);
  byId("mark").classList.toggle("covering", view.mode === "cover");
}

const act = newest(async () => {
  const { picture, row, column, layer, side, mode } = view;
  try {
    if (mode === "look") showSeen(await liveAnswer("seen", { picture, row, column, layer }), layer);
    else showClasses(await liveAnswer("occluded", { picture, row, column, side }));
  } catch (error) {
    const found = byId("found");
    if (found) found.replaceChildren(make("p", {}, error.message));
  }
});

function showSeen(units, layer) {
  const found = byId("found");
  if (!found || view.mode !== "look") return;
  const { name, answers } = network.layers[layer];
  const called = (map) => (answers ? `map ${map}, ${network.classes[map]}` : `map ${map}`);
  const items = units.map((unit) => make("li", {}, seenUnit(name, unit, called(unit.map))));
  found.replaceChildren(
    make("h3", {}, `What sees row ${view.row}, column ${view.column}`),
    items.length ? make("ul", { class: "seen" }, ...items) : make("p", {}, "No unit of this layer here responds."),
  );
}

// A unit that sees the pixel, as a link to its page; under the pointer, what it sees is framed.
function seenUnit(name, unit, called) {
  const share = unit.share === null ? "" : `, ${percent(unit.share)} of its strongest`;
  const alt = `projection of ${name} ${called} in this picture`;
  const point = () => placeBox(byId("mark"), unit.box, network.size);
  const back = () => byId("mark") && mark();
  const href = `#${encodeURIComponent(name)}/${unit.map}`;
  return make(
    "a", { href, onmouseenter: point, onfocus: point, onmouseleave: back, onblur: back },
    make("img", { class: "view pixels", src: unit.picture, alt }),
    make("span", { class: "caption" }, called),
    make("span", { class: "caption soft" }, `${number(unit.value)}${share}`),
  );
}

function showClasses(classes) {
  const found = byId("found");
  if (!found || view.mode !== "cover") return;
  const row = (one) => barRow(one.class, one.covered, `${percent(one.clear)} → ${percent(one.covered)}`, one.clear);
  const rows = classes.map(row);
  found.replaceChildren(make("h3", {}, "Classes, clear → covered"), make("ul", { class: "bars" }, ...rows));
}
