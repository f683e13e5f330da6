"""Which images, and which positions in them, drive each map hardest (Zeiler & Fergus, section 4.1 and Fig. 2)."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet
from ..drawing import shown
from ..drawing.style import Figure
from ..files import load_tensors, save_tensors
from ..ops.checks import flag, tensor
from ..progress import Shown, bar
from ..window import count

FORMAT = "zfkernels.top_activations.1"
SAVE_EVERY = 50  # batches


class TopActivations(NamedTuple):
    """The k strongest activations of each map, strongest first, at most one an image."""

    values: Tensor  # (channels, k)
    images: Tensor  # (channels, k) int64: the image's number
    positions: Tensor  # (channels, k, 2) int64: (vertical, horizontal) in the map

    def __repr__(self) -> str:
        return f"TopActivations({self.values.shape[1]} of each of {len(self.values)} maps, {shown.span(self.values)})"

    def plot(self) -> Figure:
        """A figure of how activations fall with their rank, over all maps. Needs matplotlib."""
        return shown.ranked(self.values)

    def save(self, path: str | Path) -> None:
        """Write `plot()` to a file, whole or not at all; its ending says in which format."""
        shown.save(self, path)

    def _repr_html_(self) -> str | None:
        return shown.repr_html(self)


Found = TypeVar("Found", TopActivations, dict[str, TopActivations])
Batches = Iterable[Tensor | tuple[Any, ...] | list[Any]]  # of images, alone or first of several things


@overload
def top_activations(  # type: ignore[overload-overlap]  # a str is a sequence of them, too
    model: nn.Module | Deconvnet,
    loader: Batches,
    layer: str,
    k: int = 9,
    *,
    numbered: bool = False,
    state: str | Path | None = None,
    progress: Shown = False,
) -> TopActivations: ...


@overload
def top_activations(
    model: nn.Module | Deconvnet,
    loader: Batches,
    layer: Sequence[str],
    k: int = 9,
    *,
    numbered: bool = False,
    state: str | Path | None = None,
    progress: Shown = False,
) -> dict[str, TopActivations]: ...


def top_activations(
    model: nn.Module | Deconvnet,
    loader: Batches,
    layer: str | Sequence[str],
    k: int = 9,
    *,
    numbered: bool = False,
    state: str | Path | None = None,
    progress: Shown = False,
) -> TopActivations | dict[str, TopActivations]:
    """The `k` strongest activations of every map of `layer` over the images of `loader`, in one pass over it.

    An image enters once a map, with its strongest position (the first in row-major order of several equal ones); of
    images with equal activations the one with the lower number ranks first. So the result does not depend on how the
    images are batched, and with `numbered` not on their order either. Memory is bounded by one batch and its maps.
    Dropout is skipped and batch norms use their running statistics, whatever the model's mode.

    Over several processes, each searches its own part with `numbered`, and `gather` merges the parts exactly.

    Args:
        model: a ZFNet, any model that `Deconvnet` traces, or a Deconvnet.
        loader: gives batches of images (N, C, H, W), or tuples or lists whose first item is one, as the model takes
            them; a DataLoader, a list of tensors, a generator.
        layer: a name in `Deconvnet(model).layers`, or in its `vector_layers`, whose features have the position (0, 0);
            or several of them, all served from each batch while it is there.
        k: how many. With fewer images than `k` in the loader, all of them rank: the results have that many columns.
        numbered: each batch is a tuple or list that ends with its images' numbers, (N,) int64, of a larger set; a
            number met twice counts once. Otherwise images are counted from 0 through the loader.
        state: a file that keeps the result so far, written every 50 batches and at the end. When it exists, the
            search continues from it: the loader's first batches, which it has seen, are skipped.
        progress: show a progress bar (needs tqdm); "lines": a line every half minute on stderr.

    Returns:
        values, images and positions, on the CPU, as `Deconvnet.project` takes them.
        `project(images[top.images[7]], layer, 7, top.positions[7])` projects the strongest of map 7. Of several layers
        a dict of them.

    Raises:
        ValueError: `k` below 1, an unknown layer, a loader without images, numbers that do not fit, a `state` of
            another search (other weights, layers or k).
        TypeError: a batch that holds no tensor.
    """
    k = count("k", k)
    flag("numbered", numbered)
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
    layers = [layer] if isinstance(layer, str) or not isinstance(layer, Sequence) else list(layer)
    if not all(isinstance(name, str) for name in layers):
        raise TypeError(f"layer must be a layer's name, or several, got {layer!r}")
    check_loader(loader)
    if state is not None and not isinstance(state, (str, Path)):
        raise TypeError(f"state must be a file's path or None, got {state!r}")
    if state is not None and Path(state).is_dir():
        raise ValueError(f"state must be a file, and {state!r} is a folder")
    loader = bar(loader, f"strongest of {', '.join(layers)}", "batch", progress)
    best = _search(deconv, loader, layers, k, numbered, None if state is None else Path(state))
    return best[layer] if isinstance(layer, str) else {name: best[name] for name in layers}


def _search(
    deconv: Deconvnet, loader: Batches, layers: list[str], k: int, numbered: bool, file: Path | None
) -> dict[str, TopActivations]:
    search = {} if file is None else {"format": FORMAT, "weights": _digest(deconv.model), "layers": layers, "k": k}
    done, seen, best = _resume(file, search)
    for number, batch in enumerate(loader):
        if number < done:
            continue
        images = images_of(batch, number)
        numbers = _numbers(batch, images) if numbered else torch.arange(seen, seen + len(images))
        seen += len(images)
        for name, maps in deconv.strengths(images, layers).items() if len(images) else ():
            top = _of_batch(maps, numbers)
            best[name] = merge([best[name], top] if name in best else [top], k)
        if file is not None and (number + 1) % SAVE_EVERY == 0:
            _save(file, search, number + 1, seen, best)
            done = number + 1
    if not best:
        raise ValueError("loader must give at least one image, got none")
    if file is not None:
        _save(file, search, max(done, number + 1), seen, best)
    return best


def check_loader(loader: object) -> None:
    """TypeError for what gives no batches; a tensor's items are its images, and no batches of them."""
    if isinstance(loader, Tensor) and loader.ndim < 5:
        got = f"a tensor of shape {tuple(loader.shape)}; a list of it, [images], is one batch"
        raise TypeError(f"loader must give batches of images, got {got}")
    if not isinstance(loader, Iterable):
        raise TypeError(f"loader must give batches of images, got {type(loader).__name__}")


def images_of(batch: object, number: int) -> Tensor:
    """The images of a loader's batch, which are alone or first of several things; this is its batch `number`."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise TypeError(f"loader must give tensors or tuples that begin with one, got {type(images).__name__}")
    if images.ndim and not len(images):
        return images
    try:
        tensor("images", images, ("N", "C", "H", "W"))
    except (TypeError, ValueError) as error:
        raise type(error)(f"loader must give batches that the model takes; in batch {number} {error}") from error
    return images


def merge(parts: Sequence[TopActivations], k: int) -> TopActivations:
    """The `k` strongest of several searches over parts of one numbered set, exactly as one search would find them.

    Each part must hold its own `k` strongest, or all it has. An image that two parts hold counts once.

    Raises:
        TypeError, ValueError: no parts, what is no result of a search, results for other numbers of maps, `k` below 1.
    """
    k = count("k", k)
    for part in parts if isinstance(parts, Sequence) else [parts]:
        if not isinstance(part, TopActivations):
            raise TypeError(f"parts must be a list of TopActivations, got {type(part).__name__} in it")
    if len({len(part.values) for part in parts}) != 1:
        raise ValueError(f"parts must be one or more, for one layer's maps, got maps {[len(p.values) for p in parts]}")
    if len(parts) == 2 and parts[0].values.shape[1] == k and parts[1].values.shape[1]:
        return _joined_by(parts[0], parts[1])
    if len(parts) == 1 and parts[0].values.shape[1] == 1:
        return parts[0]
    return _merged(parts, k)


def _joined_by(top: TopActivations, other: TopActivations) -> TopActivations:
    """The merger of the two, as many as `top` has: only the maps are sorted of which `other` may hold one of them."""
    reached = ~(other.values.amax(1) < top.values.amin(1))  # NaN, which ranks first, is never less
    rows = reached.nonzero()[:, 0]
    if len(rows) == len(reached):
        return _merged((top, other), top.values.shape[1])
    found = _merged([TopActivations(*(of[rows] for of in part)) for part in (top, other)], top.values.shape[1])
    return TopActivations(*(old.index_copy(0, rows, new) for old, new in zip(top, found, strict=True)))


def _merged(parts: Sequence[TopActivations], k: int) -> TopActivations:
    values, images, positions = (torch.cat([part[i] for part in parts], 1) for i in range(3))
    # Two stable sorts: by number, then by value, so that equal values keep that order. NaN ranks first, as in max().
    order = images.argsort(dim=1, stable=True)
    order = order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))
    ranked = images.gather(1, order)
    by_number = ranked.argsort(dim=1, stable=True)
    in_order = ranked.gather(1, by_number)
    repeated = torch.zeros_like(ranked, dtype=torch.bool)
    repeated[:, 1:] = in_order[:, 1:] == in_order[:, :-1]
    again = torch.zeros_like(repeated).scatter(1, by_number, repeated)
    order = order.gather(1, again.to(torch.int8).argsort(dim=1, stable=True))
    order = order[:, : min(k, int((~again).sum(1).min()) if len(again) else k)]
    return TopActivations(
        values.gather(1, order), images.gather(1, order), positions.gather(1, order[..., None].expand(-1, -1, 2))
    )


def gather(top: Found, k: int = 9) -> Found:
    """Every process's part, merged, the same on each process of torch.distributed; `top` itself without it.

    A process whose part of the set is empty cannot search it; give each at least one image.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return top
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, top)
    if isinstance(top, dict):
        return {name: merge([part[name] for part in parts], k) for name in top}
    return merge(parts, k)


def diverse(top: TopActivations, labels: Tensor) -> list[int]:
    """Maps by falling strength (their weakest activation, above 0), the first of each class before any class's second.

    A map's class is what most of its images have; `labels`: (N,) int64, the images'.
    """
    turns: dict[int, int] = {}
    ranked = []
    weakest, order = top.values[:, -1].sort(descending=True, stable=True)
    for rank, channel in enumerate(order[weakest > 0].tolist()):
        favourite = int(labels[top.images[channel]].mode().values)
        turns[favourite] = turns.get(favourite, 0) + 1
        ranked.append((turns[favourite], rank, channel))
    return [channel for _, _, channel in sorted(ranked)]


def _of_batch(maps: Tensor, numbers: Tensor) -> TopActivations:
    """Every image's strongest position in each map: (channels, N)."""
    width = maps.shape[3] if maps.ndim == 4 else 1
    values, index = (result.cpu().T for result in _strongest(maps))
    return TopActivations(values, numbers.expand(values.shape), torch.stack([index // width, index % width], -1))


def _strongest(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Each map's largest value and its place, the first of several: (N, channels) each.

    Of maps that lie channels-last on a CPU as one window of a pool: torch's max takes up to twenty times as long there.
    """
    if maps.ndim == 4 and maps.device.type == "cpu" and maps.stride(1) == 1 < maps.shape[1]:
        values, places = torch.nn.functional.max_pool2d_with_indices(maps, maps.shape[2:])
        if not values.isnan().any():  # of several NaN it names the last
            return values.flatten(1), places.flatten(1)
    values, places = maps.reshape(*maps.shape[:2], -1).max(2)
    return values, places


def _numbers(batch: object, images: Tensor) -> Tensor:
    numbers = batch[-1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(numbers, Tensor) or numbers.dtype != torch.int64 or numbers.shape != images.shape[:1]:
        got = f"{numbers.dtype} {tuple(numbers.shape)}" if isinstance(numbers, Tensor) else type(numbers).__name__
        raise ValueError(f"loader must end each batch with {len(images)} int64 numbers, got {got}")
    return numbers.cpu()


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _resume(file: Path | None, search: dict[str, Any]) -> tuple[int, int, dict[str, TopActivations]]:
    if file is None or not file.exists():
        return 0, 0, {}
    try:
        kept = load_tensors(file)
    except ValueError as error:
        raise ValueError(f"{error}. It keeps a search: delete it to search anew") from error
    if not isinstance(kept, dict) or kept.get("format") != FORMAT:
        raise ValueError(f"state {file} is no state of top_activations; choose another file, or delete it")
    for name in ("layers", "k", "weights"):
        if kept.get(name) != search[name]:
            shown = "" if name == "weights" else f": {kept.get(name)}, not {search[name]}"
            raise ValueError(
                f"state {file} is of another search, with other {name}{shown}; delete it to search anew, or "
                "choose another file (of an atlas: another --out)"
            )
    try:
        best = {name: TopActivations(*kept["best"][name]) for name in search["layers"]}
        counts = kept["batches"], kept["images"]
        if not all(isinstance(count, int) and count > 0 for count in counts) or not all(map(_is_whole, best.values())):
            raise ValueError("numbers that do not fit together")
        return *counts, best
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"state {file} is damaged ({error!r}); delete it to search anew") from error


def _is_whole(top: TopActivations) -> bool:
    shape = top.values.shape
    fits = top.values.ndim == 2 and top.images.shape == shape and top.positions.shape == (*shape, 2)
    return fits and top.values.is_floating_point() and top.images.dtype == top.positions.dtype == torch.int64


def _save(file: Path, search: dict[str, Any], batches: int, images: int, best: dict[str, TopActivations]) -> None:
    kept = {name: tuple(top) for name, top in best.items()}
    state = search | {"batches": batches, "images": images, "best": kept}
    save_tensors(file, state)
