// A page of maps: the JSON in #data holds each layer's cards, a button shows one, the dialog opens it at full size.
"use strict";

const layers = JSON.parse(document.getElementById("data").textContent);
const view = document.querySelector("dialog");
const WIDE = 900; // pixels that a small panel is enlarged to, by whole pixels
let shown = null; // {layer, card}, numbers

function buttonOf(layer, card) {
  return document.querySelector(`button[data-layer="${layer}"][data-card="${card}"]`);
}

function open(layerIndex, cardIndex) {
  const layer = layers[layerIndex];
  const card = layer.cards[cardIndex];
  const sheet = layer.sheets[card.sheet];
  const part = card.full
    ? { x: 0, y: 0, w: card.full.w, h: card.full.h, of: card.full }
    : { x: card.x, y: card.y, w: card.w, h: card.h, of: sheet };
  const zoom = Math.max(1, Math.round(WIDE / part.w));
  const piece = view.querySelector(".piece");
  piece.style.aspectRatio = `${part.w} / ${part.h}`;
  piece.style.width = `${part.w * zoom}px`;
  const picture = piece.querySelector("img");
  picture.classList.toggle("pixels", !card.full);
  picture.src = part.of.src;
  picture.alt = card.alt;
  picture.style.width = `${(100 * part.of.w) / part.w}%`;
  picture.style.left = `${(-100 * part.x) / part.w}%`;
  picture.style.top = `${(-100 * part.y) / part.h}%`;
  view.querySelector("h2").textContent = `${layer.name}, map ${card.map}`;
  view.querySelector(".limit").textContent = card.limit;
  view.querySelector("ol").replaceChildren(...card.units.map(listItem));
  view.querySelector('[data-step="-1"]').disabled = cardIndex === 0;
  view.querySelector('[data-step="1"]').disabled = cardIndex === layer.cards.length - 1;
  shown = { layer: layerIndex, card: cardIndex };
  if (!view.open) view.showModal();
  history.replaceState(null, "", `#${encodeURIComponent(layer.name)}/${card.map}`);
}

function listItem(text) {
  const item = document.createElement("li");
  item.textContent = text;
  return item;
}

function turn(step) {
  if (step && layers[shown.layer].cards[shown.card + step]) open(shown.layer, shown.card + step);
}

// A link to #layer/map opens that map.
function openTarget() {
  const target = decodeURIComponent(location.hash.slice(1));
  layers.forEach((layer, layerIndex) => {
    const cardIndex = layer.cards.findIndex((card) => target === `${layer.name}/${card.map}`);
    if (cardIndex >= 0) open(layerIndex, cardIndex);
  });
}

for (const button of document.querySelectorAll("button[data-card]")) {
  button.addEventListener("click", () => open(Number(button.dataset.layer), Number(button.dataset.card)));
}

for (const button of view.querySelectorAll("button[data-step]")) {
  const step = Number(button.dataset.step);
  button.addEventListener("click", () => (step ? turn(step) : view.close()));
}

view.addEventListener("click", (event) => {
  if (event.target === view) view.close();
});

view.addEventListener("keydown", (event) => turn({ ArrowRight: 1, ArrowLeft: -1 }[event.key] || 0));

view.addEventListener("close", () => {
  history.replaceState(null, "", `#${encodeURIComponent(layers[shown.layer].name)}`);
  buttonOf(shown.layer, shown.card).focus();
});

addEventListener("hashchange", openTarget);
openTarget();
