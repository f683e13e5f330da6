"""First-layer filters, with and without the clamp on their size (Zeiler & Fergus, section 4.1 and Fig. 6)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..drawing.style import ACCENT, SOFT, Figure, new_figure, plain_axes
from ..drawing.tiles import signed_picture, tile

DEAD = 0.1  # of the median filter's root mean square
NOISE = 0.1  # of `likeness`: below it filters cannot be told from random numbers
LOW, HIGH = 0.25, 0.5  # of the Nyquist frequency: fractions of half a cycle a pixel


@dataclass(frozen=True)
class Filters:
    """What Fig. 6 speaks of: filters that never learned, and the mix of their frequencies."""

    weight: Tensor  # (filters, channels, height, width)
    rms: Tensor  # (filters,) root mean square of each filter's weights
    low: Tensor  # (filters,) fraction of its energy below LOW of the Nyquist frequency, the mean included
    high: Tensor  # (filters,) fraction above HIGH
    dead: int  # filters of rms below DEAD of the median
    all_low: int  # live filters with 3/4 of their energy low
    all_high: int  # live filters with 3/4 of their energy high
    largest: float  # the largest rms over the median: a few filters that dominate show here


def filters(weight: Tensor) -> Filters:
    """Counts for the filters (filters, channels, height, width) of a layer.

    Frequencies are the radius of the filter's 2-D discrete Fourier transform, its channels' energies added, zero-padded
    to 32 x 32 so that filters of several sizes compare; 1 is the Nyquist frequency along an axis. A filter's
    frequencies are resolved to about 2 / its side.
    """
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(f"weight must be (filters, channels, height, width), got shape {tuple(weight.shape)}")
    values = weight.detach().double()
    side = max(32, *values.shape[2:])
    energy = torch.fft.fft2(values, s=(side, side)).abs().square().sum(1)
    frequency = torch.fft.fftfreq(side, dtype=torch.float64) * 2
    radius = torch.hypot(frequency[:, None], frequency[None])
    total = energy.sum((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    low, high = ((energy * mask).sum((1, 2)) / total for mask in (radius < LOW, radius > HIGH))
    rms = values.square().mean((1, 2, 3)).sqrt()
    median = float(rms.median())
    live = rms > DEAD * median
    return Filters(
        weight=weight,
        rms=rms,
        low=low,
        high=high,
        dead=int((~live).sum()),
        all_low=int((live & (low > 0.75)).sum()),
        all_high=int((live & (high > 0.75)).sum()),
        largest=float(rms.max()) / median if median > 0 else float("nan"),
    )


def likeness(weight: Tensor) -> float:
    """How alike neighbouring weights are: the largest of the mean correlations along rows, columns and colours, 0..1.

    Of filters of independent random numbers it is about 1 / sqrt(their number); learned filters have edges and blobs.
    """
    values = torch.nn.functional.normalize(weight.detach().double().flatten(1)).view(weight.shape)
    pairs = [(values[..., 1:], values[..., :-1]), (values[..., 1:, :], values[..., :-1, :])]
    pairs += [(values, values.roll(1, 1))] if weight.shape[1] == 3 else []
    found = [(a * b).sum() / (a.square().sum() * b.square().sum()).sqrt() for a, b in pairs if a.numel()]
    return max((abs(float(value)) for value in found), default=float("nan"))


def noise_note(model: nn.Module) -> str | None:
    """A line that says that the first layer's filters are still noise, if they are."""
    try:
        weight = first_filters(model)
    except ValueError:
        return None
    found = likeness(weight)
    if not found < NOISE:
        return None
    return (
        f"note        the first {len(weight)} filters are still noise: neighbouring weights agree by {found:.2f}, "
        "of learned ones by 0.3 and more. This network has learned little, and its pictures show no more"
    )


def first_filters(model: nn.Module) -> Tensor:
    """The weight of the first module that has a 4-D one."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 4:
            return weight.detach()
    raise ValueError(f"{type(model).__name__} has no convolution")


def table(results: Mapping[str, Filters]) -> str:
    """A line a network."""
    lines = [f"{'network':<24}{'filters':>16}{'dead':>6}{'all low':>9}{'all high':>10}{'rms max':>9}{'max/median':>12}"]
    for name, s in results.items():
        shape = f"{len(s.weight)} of {s.weight.shape[2]}x{s.weight.shape[3]}"
        lines.append(
            f"{name[:23]:<24}{shape:>16}{s.dead:>6}{s.all_low:>9}{s.all_high:>10}{float(s.rms.max()):>9.3f}"
            f"{s.largest:>12.2f}"
        )
    return "\n".join(lines)


def figure(results: Mapping[str, Filters]) -> Figure:
    """Each network's filters by falling size, on one scale a network, and the sizes and frequencies of all."""
    drawn = new_figure(10.5, 3.0 * len(results))
    grid = drawn.subplots(len(results), 3, squeeze=False, width_ratios=(2, 1, 1))
    for (sheet, size, frequency), (name, result) in zip(grid, results.items(), strict=True):
        weight, order = result.weight, result.rms.argsort(descending=True)
        limit = float(weight.abs().amax())
        columns = int(np.ceil((2 * len(weight)) ** 0.5))
        zoom = max(1, 84 // weight.shape[3] // 2)
        sheet.imshow(tile([signed_picture(weight[i], limit) for i in order], columns, zoom), interpolation="nearest")
        sheet.set_axis_off()
        title = f"{name}: {weight.shape[2]} x {weight.shape[3]} pixels, full colour \u00b1{limit:.2g}"
        sheet.set_title(title, fontsize=9)
        ranked = result.rms[order].tolist()
        size.bar(range(len(ranked)), ranked, color=SOFT, width=0.9)
        size.axhline(0.1, color=ACCENT, linewidth=1)
        size.axhline(DEAD * float(result.rms.median()), color=SOFT, linewidth=1, linestyle=":")
        size.set_title(f"root mean square; {result.dead} dead (below the dots)", fontsize=9)
        size.set_xlabel("filter, largest first; line: the clamp", fontsize=8, color=SOFT)
        frequency.scatter(result.low, result.high, s=12, color=ACCENT)
        frequency.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        frequency.set_title(f"energy; {result.all_low} all low, {result.all_high} all high", fontsize=9)
        frequency.set_xlabel(f"fraction below {LOW} of Nyquist", fontsize=8, color=SOFT)
        frequency.set_ylabel(f"fraction above {HIGH}", fontsize=8, color=SOFT)
        plain_axes(size)
        plain_axes(frequency)
    return drawn
