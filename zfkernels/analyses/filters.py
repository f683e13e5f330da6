"""First-layer filters, with and without the clamp on their size (Zeiler & Fergus, section 4.1 and Fig. 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DEAD = 0.1  # of the median filter's root mean square
LOW, HIGH = 0.25, 0.5  # of the Nyquist frequency: fractions of half a cycle a pixel


@dataclass(frozen=True)
class FilterStatistics:
    """What Fig. 6 speaks of: filters that never learned, and the mix of their frequencies."""

    rms: Tensor  # (filters,) root mean square of each filter's weights
    low: Tensor  # (filters,) fraction of its energy below LOW of the Nyquist frequency, the mean included
    high: Tensor  # (filters,) fraction above HIGH
    dead: int  # filters of rms below DEAD of the median
    all_low: int  # live filters with 3/4 of their energy low
    all_high: int  # live filters with 3/4 of their energy high
    largest: float  # the largest rms over the median: a few filters that dominate show here


def filter_statistics(weight: Tensor) -> FilterStatistics:
    """Counts for the filters (filters, channels, height, width) of a layer.

    Frequencies are the radius of the filter's 2-D discrete Fourier transform, its channels' energies added, zero-padded
    to 32 x 32 so that filters of several sizes compare; 1 is the Nyquist frequency along an axis. A filter's
    frequencies are resolved to about 2 / its side.
    """
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(f"weight must be (filters, channels, height, width), got shape {tuple(weight.shape)}")
    weight = weight.detach().double()
    side = max(32, *weight.shape[2:])
    energy = torch.fft.fft2(weight, s=(side, side)).abs().square().sum(1)
    frequency = torch.fft.fftfreq(side, dtype=torch.float64) * 2
    radius = torch.hypot(frequency[:, None], frequency[None])
    total = energy.sum((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    low, high = ((energy * mask).sum((1, 2)) / total for mask in (radius < LOW, radius > HIGH))
    rms = weight.square().mean((1, 2, 3)).sqrt()
    median = float(rms.median())
    live = rms > DEAD * median
    return FilterStatistics(
        rms=rms,
        low=low,
        high=high,
        dead=int((~live).sum()),
        all_low=int((live & (low > 0.75)).sum()),
        all_high=int((live & (high > 0.75)).sum()),
        largest=float(rms.max()) / median if median > 0 else float("nan"),
    )


def table(networks: Mapping[str, Tensor]) -> str:
    """A line a network."""
    lines = [f"{'network':<24}{'filters':>16}{'dead':>6}{'all low':>9}{'all high':>10}{'rms max':>9}{'max/median':>12}"]
    for name, weight in networks.items():
        s = filter_statistics(weight)
        shape = f"{len(weight)} of {weight.shape[2]}x{weight.shape[3]}"
        lines.append(
            f"{name[:23]:<24}{shape:>16}{s.dead:>6}{s.all_low:>9}{s.all_high:>10}{float(s.rms.max()):>9.3f}"
            f"{s.largest:>12.2f}"
        )
    return "\n".join(lines)


def filters_figure(networks: Mapping[str, Tensor], path: Path) -> None:
    """Each network's filters on one scale of its own, by falling size, and the sizes and frequencies of all."""
    import numpy as np

    from ..drawing.style import ACCENT, SOFT, new_figure, plain_axes
    from ..drawing.tiles import signed_picture, tile

    figure = new_figure(10.5, 3.0 * len(networks))
    grid = figure.subplots(len(networks), 3, squeeze=False, width_ratios=(2, 1, 1))
    for (sheet, size, frequency), (name, weight) in zip(grid, networks.items(), strict=True):
        statistics = filter_statistics(weight)
        order = statistics.rms.argsort(descending=True)
        limit = float(weight.abs().amax())
        columns = int(np.ceil((2 * len(weight)) ** 0.5))
        zoom = max(1, 84 // weight.shape[3] // 2)
        sheet.imshow(tile([signed_picture(weight[i], limit) for i in order], columns, zoom), interpolation="nearest")
        sheet.set_axis_off()
        sheet.set_title(
            f"{name}: {weight.shape[2]} x {weight.shape[3]} pixels, full colour \u00b1{limit:.2g}", fontsize=9
        )
        ranked = statistics.rms[order].tolist()
        size.bar(range(len(ranked)), ranked, color=SOFT, width=0.9)
        size.axhline(0.1, color=ACCENT, linewidth=1)
        size.axhline(DEAD * float(statistics.rms.median()), color=SOFT, linewidth=1, linestyle=":")
        size.set_title(f"root mean square; {statistics.dead} dead (below the dots)", fontsize=9)
        size.set_xlabel("filter, largest first; line: the clamp", fontsize=8, color=SOFT)
        frequency.scatter(statistics.low, statistics.high, s=12, color=ACCENT)
        frequency.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        frequency.set_title(f"energy; {statistics.all_low} all low, {statistics.all_high} all high", fontsize=9)
        frequency.set_xlabel(f"fraction below {LOW} of Nyquist", fontsize=8, color=SOFT)
        frequency.set_ylabel(f"fraction above {HIGH}", fontsize=8, color=SOFT)
        plain_axes(size)
        plain_axes(frequency)
    figure.savefig(path)


def first_filters(model: torch.nn.Module) -> Tensor:
    """The weight of the first module that has a 4-D one."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 4:
            return weight.detach()
    raise ValueError(f"{type(model).__name__} has no convolution")
