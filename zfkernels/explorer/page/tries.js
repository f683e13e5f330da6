// What a unit's page tries with the network: noise in place of weights, other epochs, the layer below.
import { make, number, showPiece } from "./dom.js";
import { dataOf, liveAnswer } from "./source.js";

// `call` with the newest value, one at a time: what comes meanwhile waits, and only the last of it is asked.
export function newest(call) {
  let isBusy = false;
  let waiting = null;
  return async function ask(value) {
    if (isBusy) {
      waiting = [value];
      return;
    }
    isBusy = true;
    try {
      await call(value);
    } finally {
      isBusy = false;
    }
    if (waiting) {
      const [next] = waiting;
      waiting = null;
      ask(next);
    }
  };
}

export function drawNoise({ index, map, words }) {
  const picture = make("img", { class: "view pixels", alt: "", hidden: true });
  const said = make("output", { class: "soft" }, "0% random");
  const rank = make("select", { "aria-label": "which of its pictures" }, ...words.pairs.map((_, i) => make("option", { value: i }, `picture ${i + 1}`)));
  const slider = make("input", { type: "range", min: 0, max: 100, value: 0, step: 5, "aria-label": "part of random weights, percent" });
  const ask = newest(async () => {
    const part = slider.value / 100;
    try {
      const answer = await liveAnswer("noise", { layer: index, map, rank: rank.value, part });
      picture.src = answer.picture;
      picture.alt = `projection of ${words.layer} map ${map} with ${slider.value}% random weights`;
      picture.hidden = false;
      const alike = answer.similarity === null ? "nothing to compare" : `rank correlation ${answer.similarity.toFixed(2)}, SSIM ${(answer.ssim ?? 0).toFixed(2)}`;
      said.textContent = `${slider.value}% random: ${alike}`;
    } catch (error) {
      said.textContent = error.message;
    }
  });
  slider.addEventListener("input", ask);
  rank.addEventListener("change", ask);
  const text = "Replace the weights below the unit by noise of their size. A picture that stays says little of what was learned.";
  return make("section", { class: "noise" }, make("h3", {}, "Trained to random"), make("p", { class: "soft" }, text), make("div", { class: "row" }, slider, rank), said, picture);
}

export function drawEpochs({ network, index, map, words }) {
  const names = network.epochs;
  const heading = make("h3", {}, "Epochs");
  if (!names.length) return make("section", { class: "grey" }, heading, make("p", {}, "Start it with ", make("code", {}, "--checkpoints run/epoch_*.pt")));
  const count = words.pairs.length;
  const views = words.pairs.map((pair) => make("div", { class: "view pixels", role: "img", "aria-label": `projection in ${pair.name} by the epoch chosen` }));
  const [top, left, bottom, right] = words.pairs[0].frame;
  views.forEach((view) => (view.style.aspectRatio = `${right - left} / ${bottom - top}`));
  const said = make("output", { class: "soft" }, names[names.length - 1]);
  const slider = make("input", { type: "range", min: 0, max: names.length - 1, value: names.length - 1, "aria-label": "epoch" });
  const show = () => {
    said.textContent = names[slider.value];
    views.forEach((view, i) => showPiece(view, `live/epoch/${index}/${map}/${slider.value}.webp?v=${network.run}-${words.searched}`, i, count));
  };
  slider.addEventListener("input", show);
  show();
  return make("section", {}, heading, make("p", { class: "soft" }, "The map's strongest activation in each of these pictures, by each checkpoint."), make("div", { class: "row" }, slider, said), make("div", { class: "nine" }, ...views));
}

export function drawBelow({ network, index, map }) {
  const list = make("ul", { class: "inputs" });
  const section = make("section", {}, make("h3", {}, "Strongest inputs below"), list);
  liveAnswer("below", { layer: index, map }).then(
    (answer) => fill(section, list, network, answer),
    (error) => list.replaceChildren(make("li", { class: "soft" }, error.message)),
  );
  return section;
}

async function fill(section, list, network, answer) {
  if (!answer.inputs.length) {
    list.replaceChildren(make("li", { class: "soft" }, "This layer's inputs are not those of one convolution."));
    return;
  }
  const index = network.layers.findIndex((layer) => layer.name === answer.layer);
  const words = index < 0 ? null : await dataOf(`layer/${index}`);
  list.replaceChildren(...answer.inputs.map(({ map, sum }) => input(answer, map, sum, index, words)));
  if (index >= 0) list.style.setProperty("--shape", (2 * network.layers[index].field[1]) / network.layers[index].field[0]);
  const text = `Sums of weight × input of its strongest activation, largest first; all together ${number(answer.total)}.`;
  list.before(make("p", { class: "soft" }, text));
}

function input(answer, map, sum, index, words) {
  const text = `${answer.layer ? `${answer.layer}/` : "input "}${map}  ${sum > 0 ? "+" : ""}${number(sum)}`;
  if (index < 0) return make("li", {}, text);
  const link = make("a", { href: `#${encodeURIComponent(answer.layer)}/${map}` });
  if (words.strength[map] > 0) {
    const tile = make("span", { class: "tile", "aria-hidden": "true" });
    showPiece(tile, `data/tile/${index}/${map}.webp`, 0, 1);
    link.append(tile);
  }
  link.append(make("span", { class: "caption" }, text));
  return make("li", {}, link);
}
