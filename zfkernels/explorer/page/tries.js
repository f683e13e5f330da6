// What a unit's page tries with the network: noise in place of weights, other epochs, the layer below.
import { make, number, showPiece } from "./dom.js";
import { dataOf, liveAnswer, whileHere } from "./source.js";

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
  const choices = words.pairs.map((_, i) => make("option", { value: i }, `picture ${i + 1}`));
  const rank = make("select", { "aria-label": "which of its pictures" }, ...choices);
  const slider = make("input", {
    type: "range", min: 0, max: 100, value: 0, step: 5, "aria-label": "part of random weights, percent",
  });
  const ask = newest(async () => {
    const part = slider.value / 100;
    try {
      const answer = await liveAnswer("noise", { layer: index, map, rank: rank.value, part });
      picture.src = answer.picture;
      picture.alt = `projection of ${words.layer} map ${map} with ${slider.value}% random weights`;
      picture.hidden = false;
      const { similarity, ssim } = answer;
      const numbers = () => `rank correlation ${similarity.toFixed(2)}, SSIM ${(ssim ?? 0).toFixed(2)}`;
      said.textContent = `${slider.value}% random: ${similarity === null ? "nothing to compare" : numbers()}`;
    } catch (error) {
      said.textContent = error.message;
    }
  });
  slider.addEventListener("input", ask);
  rank.addEventListener("change", ask);
  const text =
    "Replace the weights below the unit by noise of their size. A picture that stays says little of what was learned.";
  return make(
    "section", { class: "noise" },
    make("h3", {}, "Trained to random"), make("p", { class: "soft" }, text),
    make("div", { class: "row" }, slider, rank), said, picture,
  );
}

export function drawEpochs({ network, index, map, words, drawn }) {
  const names = network.epochs;
  const heading = make("h3", {}, "Epochs");
  if (!names.length) {
    const option = make("code", {}, "--checkpoints run/epoch_*.pt");
    return make("section", { class: "grey" }, heading, make("p", {}, "Start it with ", option));
  }
  const views = words.pairs.map((pair) =>
    make("div", { class: "view pixels", role: "img", "aria-label": `projection in ${pair.name} by the epoch chosen` }),
  );
  const [top, left, bottom, right] = words.pairs[0].frame;
  views.forEach((view) => (view.style.aspectRatio = `${right - left} / ${bottom - top}`));
  const said = make("output", { class: "soft" }, "");
  const last = names.length - 1;
  const slider = make("input", { type: "range", min: 0, max: last, value: last, "aria-label": "epoch" });
  const show = () => {
    said.textContent = names[slider.value];
    const url = `live/epoch/${index}/${map}/${slider.value}.webp?v=${network.run}-${words.searched}`;
    views.forEach((view, i) => showPiece(view, url, i, views.length));
  };
  slider.addEventListener("input", show);
  said.textContent = names[last];
  afterwards(drawn, show);
  const text = "The map's strongest activation in each of these pictures, by each checkpoint.";
  return make(
    "section", {}, heading, make("p", { class: "soft" }, text),
    make("div", { class: "row" }, slider, said), make("div", { class: "nine" }, ...views),
  );
}

export function drawBelow({ network, index, map, drawn }) {
  const list = make("ul", { class: "inputs" }, make("li", { class: "soft" }, "…"));
  const section = make("section", {}, make("h3", {}, "Strongest inputs below"), list);
  afterwards(drawn, async (signal) => {
    try {
      await fill(section, list, network, await liveAnswer("below", { layer: index, map }, { signal }));
    } catch (error) {
      if (!signal.aborted) list.replaceChildren(make("li", { class: "soft" }, error.message));
    }
  });
  return section;
}

// Once the page's own pictures are drawn, if it is still open: the server makes one thing at a time.
async function afterwards(drawn, call) {
  const signal = whileHere();
  await drawn;
  if (!signal.aborted) await call(signal);
}

async function fill(section, list, network, answer) {
  if (!answer.inputs.length) {
    list.replaceChildren(make("li", { class: "soft" }, "This layer's inputs are not those of one convolution."));
    return;
  }
  const index = network.layers.findIndex((layer) => layer.name === answer.layer);
  const words = index < 0 ? null : await dataOf(`layer/${index}`);
  list.replaceChildren(...answer.inputs.map(({ map, sum }) => input(answer, map, sum, index, words)));
  const [height, width] = index < 0 ? [1, 1] : network.layers[index].field;
  list.style.setProperty("--shape", (2 * width) / height);
  const text = `Sums of weight × input of its strongest activation, largest first; together ${number(answer.total)}.`;
  list.before(make("p", { class: "soft" }, text));
}

function input(answer, map, sum, index, words) {
  const text = `${answer.layer ? `${answer.layer}/` : "input "}${map}  ${sum > 0 ? "+" : ""}${number(sum)}`;
  if (index < 0) return make("li", { class: "caption" }, text);
  const link = make("a", { href: `#${encodeURIComponent(answer.layer)}/${map}` });
  if (words.strength[map] > 0) {
    const tile = make("span", { class: "tile", "aria-hidden": "true" });
    showPiece(tile, `data/tile/${index}/${map}.webp`, 0, 1);
    link.append(tile);
  }
  link.append(make("span", { class: "caption" }, text));
  return make("li", {}, link);
}
