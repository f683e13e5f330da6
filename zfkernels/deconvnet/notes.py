"""What to know of projections: the sentences of `Projection.notes`."""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from ..graph.graph import Graph
from ..graph.rules import Rules
from ..graph.steps import ReLU
from ..graph.watch import Seen
from ..graph.windowed import Pool
from .serving import Plan
from .signals import is_nonlinear
from .units import Units

SHOWN = 5  # functions, or units, that a note names


def notes(plan: Plan, layer: str, rules: Rules, overrides: Mapping[object, str]) -> tuple[str, ...]:
    """Of a layer under these rules."""
    stop = plan.stops[layer]
    told = [] if plan.seen is None else _kept_derivatives(plan.seen, stop, overrides)
    if rules.method == "deconvnet" and without_switches(plan.graph, stop):
        told.append(
            f"no max-pooling lies between {layer!r} and the pixels, where a deconvnet projection hardly depends on the "
            'image (Deconvnet.image_dependence says how much); method="guided" does'
        )
    return tuple(told)


def _kept_derivatives(seen: Seen, stop: int, overrides: Mapping[object, str]) -> list[str]:
    numbers = [i for i in seen.graph.ancestors(stop) if is_nonlinear(seen.calls[i], seen.kinds[i], overrides)]
    counts = Counter(seen.kinds[i] for i in numbers if i not in seen.rectified and not _one_value(seen, i))
    if not counts:
        return []
    listed = ", ".join(f"{name} ({count})" for name, count in counts.most_common(SHOWN))
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    return [f"no rectifiers, and so with their true derivatives under every method: {listed}{more}"]


def _one_value(seen: Seen, number: int) -> bool:
    """A product or quotient of a value and something that does not depend on the images is linear."""
    products = ("mul", "imul", "truediv", "itruediv", "matmul", "__matmul__", "bmm", "einsum")
    return seen.calls[number] in products and len(seen.graph.node(number).inputs) < 2


def without_switches(graph: Graph, stop: int) -> bool:
    """Whether rectifiers, but no max-pooling, lie between a value and the pixels."""
    steps = [graph.node(number).step for number in graph.ancestors(stop) if number != stop]
    pools = any(isinstance(step, Pool) or "max_pool" in step.name for step in steps)
    return not pools and not isinstance(graph.node(stop).step, Pool) and any(isinstance(step, ReLU) for step in steps)


def empty(pixels: Tensor, boxes: Tensor, values: Tensor, units: Units, method: str | None) -> tuple[str, ...]:
    """Of projections that are all 0; outside of its box each is."""
    parts = (
        picture[:, top:bottom, left:right]
        for picture, (top, left, bottom, right) in zip(pixels, boxes.tolist(), strict=True)
    )
    blank = [i for i, part in enumerate(parts) if not bool(part.any())]
    if not blank:
        return ()
    dead = [i for i in blank if float(values[i]) == 0]
    lost = [i for i in blank if float(values[i]) != 0]
    told = [f"the activation of {_named(units, dead)} is 0, and so is its projection"] if dead else []
    text = (
        f'nothing comes down to the pixels from {_named(units, lost)} with method="{method}": its projection is all 0'
    )
    return (*told, *([text] if lost else []))


def _named(units: Units, rows: list[int]) -> str:
    named = [f"channel {units.channels[i]} at {tuple(units.positions[i].tolist())}" for i in rows[:SHOWN]]
    return ", ".join(named) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
