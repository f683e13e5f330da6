// A page of maps: the JSON in #data holds each layer's cards, a button shows one, the dialog opens it at full size.
"use strict";

const layers = JSON.parse(document.getElementById("data").textContent);
const view = document.querySelector("dialog");
const buttons = document.querySelectorAll("button[data-layer]");

function open(layerIndex, cardIndex) {
  const layer = layers[layerIndex];
  const card = layer.cards[cardIndex];
  const zoom = Math.max(1, Math.min(Math.floor((innerWidth * 0.9) / card.w), Math.round(900 / card.w)));
  view.querySelector("h2").textContent = `${layer.name}, map ${card.map}`;
  const picture = view.querySelector("img");
  picture.src = card.src;
  picture.width = card.w * zoom;
  picture.height = card.h * zoom;
  view.querySelector(".limit").textContent = card.limit;
  view.querySelector(".zoom").textContent = `${zoom} x ${zoom}`;
  view.querySelector("ol").replaceChildren(...card.units.map(listItem));
  view.dataset.layer = layerIndex;
  view.dataset.card = cardIndex;
  if (!view.open) view.showModal();
  location.hash = `${layer.name}/${card.map}`;
}

function listItem(text) {
  const item = document.createElement("li");
  item.textContent = text;
  return item;
}

for (const button of buttons) {
  const layerIndex = Number(button.dataset.layer);
  const cardIndex = Number(button.dataset.card);
  button.querySelector("img").src = layers[layerIndex].cards[cardIndex].src;
  button.onclick = () => open(layerIndex, cardIndex);
}

view.onclick = (event) => {
  if (event.target === view) view.close();
};

view.onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const layerIndex = Number(view.dataset.layer);
  const cardIndex = Number(view.dataset.card) + (step || 0);
  if (step && layers[layerIndex].cards[cardIndex]) open(layerIndex, cardIndex);
};

// A link to #layer/map opens that map.
const target = decodeURIComponent(location.hash.slice(1));
layers.forEach((layer, layerIndex) =>
  layer.cards.forEach((card, cardIndex) => {
    if (target === `${layer.name}/${card.map}`) open(layerIndex, cardIndex);
  }),
);
