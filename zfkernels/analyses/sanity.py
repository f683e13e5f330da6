"""Whether a picture depends on what the network has learned: weights are randomised layer by layer, from the top.

A projection that hardly changes when the layers that made it are replaced by noise shows the image's edges, not the
network (Mahendran & Vedaldi 2016 find the deconvnet near that; Adebayo et al. 2018, cascading randomisation, give the
test). After each stage the same unit is projected anew, and compared with the projection through the trained weights
inside the unit's receptive field, outside of which both are 0 anyway.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet
from ..deconvnet.units import one_image
from ..drawing.style import Figure, new_figure
from ..drawing.tiles import cut, full_scale, plain_picture, signed_picture
from ..limits import check_memory
from ..progress import Shown, bar
from ..window import count

OF_A_PICTURE = 1000  # bytes that each takes beside its pixels


@dataclass(frozen=True)
class Stage:
    """The comparison after `module` and all above it were randomised; means over the repeats, each in -1..1.

    1 says that nothing changed, 0 that nothing is left. NaN where every randomised picture is empty.
    """

    module: str
    rank: float  # Spearman's rank correlation of the pixels' values, of all channels
    rank_size: float  # of their absolute values, which keeps edges whose sign turned
    ssim: float  # structural similarity of the absolute values, summed over channels
    empty: int  # how many repeats gave a picture without a pixel, left out of the means


@dataclass(frozen=True)
class Sanity:
    layer: str
    channel: int
    position: tuple[int, int]
    method: str
    box: tuple[int, int, int, int]  # the receptive field compared: top, left, bottom, right
    stages: list[Stage]  # the top module first
    original: Tensor  # (C, H, W)
    pictures: Tensor  # (stages, C, H, W), those of the first repeat


@torch.no_grad()
def sanity_check(
    model: nn.Module,
    image: Tensor,
    layer: str | None = None,
    channel: int | None = None,
    position: tuple[int, int] | None = None,
    *,
    norm: str = "identity",
    method: str = "deconvnet",
    repeats: int = 3,
    seed: int = 0,
    progress: Shown = False,
) -> Sanity:
    """Randomise weights layer by layer from `layer` down to the pixels, and compare the unit's pictures.

    Each weight and bias tensor is replaced by Gaussian noise of its own mean and standard deviation, so that signals
    keep their size; a batch norm keeps its running statistics. The unit stays the one that was chosen with the trained
    weights, and is given the value 1 on the way down, for its own may be 0 after a randomisation.

    Args:
        model: any that `Deconvnet` takes; it is copied and left as it is.
        image: (C, H, W) or (1, C, H, W), as the model takes it.
        layer: of the unit; the model's last when None.
        channel: its map, or feature; the one of the strongest activation when None.
        position: its place; the map's strongest when None.
        norm, method: as of `Deconvnet.project`.
        repeats: independent randomisations, over which the numbers are means.
        seed: of the noise; the same seed gives the same numbers.
        progress: show a progress bar (needs tqdm); "lines": a line every half minute on stderr.

    Raises:
        ValueError, TypeError, NotImplementedError: as `Deconvnet` and `project`; a unit whose picture is empty.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", 2018, section 3.1; Mahendran & Vedaldi, "Salient
    deconvolutional networks", 2016.
    """
    repeats = count("repeats", repeats)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {seed!r}")
    images = one_image(image)
    trained = Deconvnet(model)
    layer = (trained.layers + trained.vector_layers)[-1] if layer is None else layer
    if channel is None:
        value = trained.activations(images, layer)[0]
        channel = int(value.flatten(1).amax(1).argmax() if value.ndim == 3 else value.argmax())
    original = trained.project(images, layer, channel, position, norm, method=method, strength=1.0)
    if len(original.values) != 1:
        raise ValueError(f"channel and position must name one unit, got {len(original.values)}")
    place = tuple(original.positions[0].tolist())
    box = tuple(original.boxes[0].tolist())
    picture = original.pixels[0]
    if not picture.any():
        raise ValueError(
            f"the picture of channel {channel} of layer {layer!r} at {place} is empty; choose another unit or image"
        )
    names = trained.modules_below(layer)[::-1]
    if not names:
        raise ValueError(f"no module below layer {layer!r} has weights to randomise")
    need = repeats * len(names) * (picture.nbytes + OF_A_PICTURE)
    check_memory(need, f"repeats={repeats} pictures for each of {len(names)} modules")
    pictures = []
    rounds = [(repeat, name) for repeat in range(repeats) for name in names]
    for repeat, name in bar(rounds, f"randomising below {layer}", "layer", progress):
        if name == names[0]:
            deconv = copy.deepcopy(trained)
            generator = torch.Generator().manual_seed((seed * 1_000_003 + repeat) % 2**63)
        randomise(deconv.model.get_submodule(name), generator)
        noise = deconv.project(images, layer, channel, place, norm, method=method, strength=1.0)
        pictures.append(noise.pixels[0])
    table = [pictures[i :: len(names)] for i in range(len(names))]
    stages = [compared(name, picture, some, box) for name, some in zip(names, table, strict=True)]
    return Sanity(layer, channel, place, method, box, stages, picture, torch.stack(pictures[: len(names)]))


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Gaussian noise of the mean and standard deviation of each of its tensors (of one number: its size)."""
    for parameter in module.parameters(recurse=False):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = parameter.double()
        spread = values.std() if parameter.numel() > 1 else values.abs().mean()
        parameter.copy_(values.mean() + spread * noise.to(values.device))


def compared(name: str, original: Tensor, pictures: list[Tensor], box: tuple[int, int, int, int]) -> Stage:
    """How alike `original` is to `pictures` (C, H, W) inside the box: means over them, called `name`."""
    top, left, bottom, right = box
    one = original[:, top:bottom, left:right].double()
    others = [picture[:, top:bottom, left:right].double() for picture in pictures]
    full = [other for other in others if other.any() and torch.isfinite(other).all()]
    measures = [
        (
            _correlation(_ranks(one.flatten()), _ranks(other.flatten())),
            _correlation(_ranks(one.abs().flatten()), _ranks(other.abs().flatten())),
            ssim(_unit(one), _unit(other)),
        )
        for other in full
    ]
    rank, size, similarity = torch.tensor(measures, dtype=torch.float64).view(-1, 3).mean(0).tolist()
    return Stage(name, rank, size, similarity, len(others) - len(full))


def _ranks(values: Tensor) -> Tensor:
    """Each value's rank; equal values have their ranks' mean."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts - 1) / 2)[inverse]
    return ranks


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else float("nan")


def _unit(picture: Tensor) -> Tensor:
    """Absolute values summed over channels, the largest 1."""
    sizes = picture.abs().sum(0)
    return sizes / sizes.max()


def ssim(a: Tensor, b: Tensor) -> float:
    """The mean structural similarity of two (H, W) pictures in 0..1, with Gaussian windows of 1.5 pixels.

    SSIM = (2 ma mb + c1) (2 sab + c2) / ((ma^2 + mb^2 + c1) (saa + sbb + c2)), of the windows' means m and covariances
    s, c1 = 0.01^2, c2 = 0.03^2. Pictures smaller than the window of 11 pixels are compared as one window.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    pairs = torch.stack([a, b, a * a, b * b, a * b])[:, None]
    size = [min(11, side) for side in a.shape]
    rows, columns = (torch.exp(-((torch.arange(n) - (n - 1) / 2) ** 2) / 4.5).to(a) for n in size)
    window = rows[:, None] * columns
    ma, mb, aa, bb, ab = F.conv2d(pairs, (window / window.sum())[None, None])[:, 0]
    saa, sbb, sab = aa - ma * ma, bb - mb * mb, ab - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * ma * mb + c1) * (2 * sab + c2) / ((ma * ma + mb * mb + c1) * (saa + sbb + c2))
    return float(similar.mean())


def table(result: Sanity, repeats: int) -> str:
    """The unit, and a line a stage: what is left of its picture. `repeats`: as `sanity_check` was given."""
    width = max(len("randomised down to"), *(len(stage.module) for stage in result.stages))
    lines = [
        f"unit        {result.layer}, map {result.channel}, place {result.position}; {result.method}",
        f"{'randomised down to':<{width}}  {'rank':>6}  {'|rank|':>6}  {'SSIM':>6}",
    ]
    for stage in result.stages:
        empty = f"  ({stage.empty} of {repeats} empty)" if stage.empty else ""
        lines.append(f"{stage.module:<{width}}  {stage.rank:6.2f}  {stage.rank_size:6.2f}  {stage.ssim:6.2f}{empty}")
    return "\n".join(lines)


def figure(result: Sanity, picture: Tensor) -> Figure:
    """The part of the input that the unit sees, its picture, and that of each stage with its numbers.

    All have equal contrast. `picture`: the input as uint8 (3, H, W).
    """
    pictures = [result.original, *result.pictures]
    numbers = (f"rank {s.rank:.2f}  |rank| {s.rank_size:.2f}  SSIM {s.ssim:.2f}" for s in result.stages)
    names = ["trained", *(f"{s.module}\n{text}" for s, text in zip(result.stages, numbers, strict=True))]
    columns = min(5, len(pictures) + 1)
    rows = -(-(len(pictures) + 1) // columns)
    drawn = new_figure(2.5 * columns, 2.9 * rows + 0.8)
    grid = drawn.subplots(rows, columns, squeeze=False).ravel()
    unit = f"{result.layer}, map {result.channel}, place {result.position}, {result.method}"
    drawn.suptitle(f"{unit}: weights randomised from the top down to ...", fontsize=11)
    for axes in grid:
        axes.axis("off")
    grid[0].imshow(plain_picture(cut(picture, result.box)))
    grid[0].set_title("what the unit sees", fontsize=8)
    for axes, pixels, name in zip(grid[1:], pictures, names, strict=False):
        part = cut(pixels, result.box)
        limit = full_scale([part.double()]) or 1.0
        axes.imshow(signed_picture(part, limit), interpolation="nearest")
        axes.set_title(name, fontsize=8)
    return drawn
