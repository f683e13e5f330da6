// The page: addresses (#layer, #layer/map, #/picture/number), keys, and the search's progress.
import { byId, isTyping, make } from "./dom.js";
import { drawLayers } from "./layers.js";
import { showPicture, takeFile } from "./picture.js";
import { dataOf, isLive, leavePage, liveCommand, livePost, setVersion } from "./source.js";
import { hideWhole, showUnit, unitHref } from "./unit.js";
import { focusUnit, markUnit, neighbourOf, showWall } from "./wall.js";

let net = null;
let at = { layer: -1, map: null, picture: null };
let searched = 0;
let lastMap = null; // the last unit that was asked for, drawn or not, until its tile has the focus again
let turn = Promise.resolve();

// One thing after the other: an answer that comes late must not draw over a later page.
function inTurn(call) {
  turn = turn.then(call).catch((error) => byId("side").replaceChildren(make("p", { role: "alert" }, error.message)));
  return turn;
}

function parsed(hash = location.hash) {
  const address = hash.slice(1);
  const picture = /^\/picture(?:\/(u?\d+))?$/.exec(address);
  if (picture) return { layer: Math.max(0, at.layer), map: null, picture: picture[1] || "" };
  const cut = address.lastIndexOf("/");
  const [name, map] = cut < 0 ? [address, null] : [address.slice(0, cut), Number(address.slice(cut + 1))];
  const found = net.layers.findIndex((layer) => encodeURIComponent(layer.name) === name || layer.name === name);
  const layer = found < 0 ? Math.max(0, at.layer) : found;
  const isMap = found >= 0 && Number.isInteger(map) && map >= 0 && map < net.layers[layer].maps && cut >= 0;
  return { layer, map: isMap ? map : null, picture: null };
}

async function route(isFirst) {
  if (location.hash === "#wall") return byId("wall").focus();
  const { layer } = at;
  at = parsed();
  leavePage();
  hideWhole();
  if (layer !== at.layer) await showWall(net, at.layer);
  drawLayers(net, net.layers[at.layer].name);
  markUnit(at.map);
  document.body.dataset.open = at.map !== null ? "unit" : at.picture !== null ? "picture" : "nothing";
  const title = at.map === null ? showPicture(net, at.picture, at.layer) : await showUnit(net, at.layer, at.map);
  byId("side").scrollTop = 0;
  const { name } = net.layers[at.layer];
  document.title = `${at.map === null ? name : `${name}/${at.map}`} · zfkernels explore`;
  if (at.map !== null || (at.picture !== null && !isFirst)) title.focus({ preventScroll: innerWidth > 1000 });
  else if (at.picture === null && lastMap !== null) focusUnit(lastMap);
  lastMap = at.map === null ? null : (lastMap ?? at.map);
}

function onKey(event) {
  const there = parsed(); // where the address is; what is drawn may be on its way
  if (event.key === "Escape" && (there.map !== null || there.picture !== null)) {
    location.hash = encodeURIComponent(net.layers[there.layer].name);
  }
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || there.map === null || isTyping(event.target) || event.altKey || event.ctrlKey || event.metaKey) return;
  const next = neighbourOf(there.map, step);
  if (next !== null) location.hash = unitHref(net.layers[there.layer].name, next);
}

// Draws again what is drawn, with what was found since. Where the address has gone on, its own turn comes next.
async function reload() {
  setVersion(`${net.run}-${searched}`);
  net = await dataOf("network");
  setVersion(`${net.run}-${searched}`);
  leavePage();
  const held = document.activeElement;
  const isBeside = byId("side").contains(held);
  await showWall(net, at.layer);
  drawLayers(net, net.layers[at.layer].name);
  markUnit(at.map);
  if (at.map !== null) await showUnit(net, at.layer, at.map);
  if (document.activeElement !== document.body) return;
  if (held?.dataset.unit) return focusUnit(Number(held.dataset.unit));
  const again = byId(held?.id) || (isBeside && byId("unit-title"));
  if (again) again.focus({ preventScroll: true });
}

function watchSearch() {
  const events = new EventSource("live/search");
  let shown = searched;
  byId("search").hidden = false;
  events.onmessage = async (event) => {
    const report = JSON.parse(event.data);
    const [isOver, isFailed] = [report.state !== "running", report.state === "failed"];
    const count = `${report.done} of ${report.total} pictures searched`;
    byId("search").querySelector("progress").value = report.done / report.total;
    byId("searched").textContent = isFailed ? `search failed: ${report.error}` : count;
    byId("steer").textContent = report.state === "running" ? "Stop" : "Continue";
    byId("steer").hidden = report.state === "done";
    byId("search").querySelector("progress").hidden = report.state === "done";
    if (isOver) events.close();
    searched = report.done;
    // The first results, each doubling of them, and the last are shown; between, what is looked at stays still.
    if (report.done && report.done !== shown && (isOver || report.done >= 2 * shown)) {
      shown = report.done;
      await inTurn(reload);
    }
  };
  events.onerror = () => {
    events.close();
    byId("searched").textContent = "the server has stopped";
  };
}

async function steer() {
  const verb = byId("steer").textContent === "Stop" ? "stop" : "start";
  await livePost(`search/${verb}`);
  if (verb === "start") watchSearch();
}

async function begin() {
  net = await dataOf("network");
  searched = net.searched;
  setVersion(`${net.run}-${searched}`);
  byId("title").textContent = net.title;
  lastMap = parsed().map;
  window.addEventListener("hashchange", (event) => {
    lastMap = parsed(new URL(event.newURL).hash).map ?? lastMap; // the address may have gone on before the event
    inTurn(() => route(false));
  });
  document.addEventListener("keydown", onKey);
  await inTurn(() => route(true));
  if (!isLive) {
    byId("command").replaceChildren("Live: ", make("code", {}, liveCommand));
    return;
  }
  byId("steer").addEventListener("click", steer);
  watchSearch();
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) takeFile(event.dataTransfer.files[0]);
  });
}

begin();
