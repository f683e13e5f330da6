// The network as a column of layers.
import { byId, make } from "./dom.js";

export function drawLayers(network, current) {
  const items = network.layers.map((layer) => {
    const [height, width] = layer.field;
    const isAll = height === network.size[0] && width === network.size[1];
    const sees = isAll ? "sees the whole picture" : `sees ${height} × ${width}, step ${layer.stride[0]}`;
    const dead = layer.dead ? `, ${layer.dead} silent` : "";
    return make(
      "li",
      {},
      make(
        "a",
        { href: `#${encodeURIComponent(layer.name)}`, "aria-current": layer.name === current ? "true" : null },
        make("strong", {}, layer.name),
        make("span", { class: "soft" }, `${layer.maps} maps${dead}`),
        make("span", { class: "soft" }, sees),
        layer.note ? make("span", { class: "note" }, layer.note.split(/[:;]/)[0]) : null,
      ),
    );
  });
  byId("layers").replaceChildren(make("ol", {}, ...items));
}
