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
  const pane = byId("layers");
  pane.replaceChildren(make("ol", {}, ...items));
  const chosen = pane.querySelector("[aria-current]");
  if (!chosen) return;
  // Beside or above the wall, as wide or high as the pane is, the chosen layer is in view; the page stays where it is.
  const [area, own] = [pane.getBoundingClientRect(), chosen.getBoundingClientRect()];
  if (own.left < area.left || own.right > area.right) pane.scrollLeft += own.left - area.left - area.width / 3;
  if (own.top < area.top || own.bottom > area.bottom) pane.scrollTop += own.top - area.top - area.height / 3;
}
