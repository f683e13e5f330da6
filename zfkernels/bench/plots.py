"""A run's record as pictures: ratio bars, roofline, growth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..drawing.style import save
from . import tables
from .jobs import JOBS
from .measure import OURS
from .record import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(record: Row, folder: Path) -> list[Path]:
    """Writes ratios.png, roofline.png and growth.png into `folder`, those that the record has data for."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in (("ratios", ratios), ("roofline", roofline), ("growth", growth)):
        figure = Figure(layout="constrained", dpi=120)
        if draw(record, figure):
            save(figure, folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written


def ratios(record: Row, figure: Figure) -> bool:
    """For each job and N a bar: how many times as fast as the fastest peer."""
    rows = [row for row in record["rows"] if row.get("fastest") and JOBS[row["job"]].group != "growth"]
    names = list(Row.fromkeys(row["job"] for row in rows))
    sizes = sorted({row["n"] for row in rows})
    if not rows:
        return False
    figure.set_size_inches(9, 1.5 + 0.13 * len(names) * len(sizes))
    axes = figure.subplots()
    height = 0.8 / len(sizes)
    for i, n in enumerate(sizes):
        bars = [row for row in rows if row["n"] == n]
        centers = [names.index(row["job"]) + (i - (len(sizes) - 1) / 2) * height for row in bars]
        axes.barh(centers, [row["ratio"][row["fastest"]] - 1 for row in bars], height, left=1, label=f"N = {n}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the fastest peer (above 1: zfkernels is faster)")
    axes.set_title(caption(record))
    axes.legend()
    return True


def roofline(record: Row, figure: Figure) -> bool:
    """Arithmetic intensity against rate, under the ceilings."""
    rows = [row for row in record["rows"] if row["flops"] and row["bytes"] and OURS in row["ms"]]
    if not rows or not record.get("ceilings"):
        return False
    figure.set_size_inches(8, 5)
    axes = figure.subplots()
    points = [(row["flops"] / row["bytes"], row["flops"] / row["ms"][OURS] / 1e6, row["job"]) for row in rows]
    peak = record["ceilings"]["flops"] / 1e9
    first_knee = peak / max(record["ceilings"]["copies"].values()) * 1e9
    low, high = min(first_knee, *(p[0] for p in points)) / 2, max(p[0] for p in points) * 2
    for words, rate in (("in cache", max), ("in memory", min)):
        bandwidth = rate(record["ceilings"]["copies"].values()) / 1e9
        knee = peak / bandwidth
        axes.plot([low, knee, high], [low * bandwidth, peak, peak], label=f"copying {words}, {bandwidth:.0f} GB/s")
    axes.scatter([p[0] for p in points], [p[1] for p in points], s=14, color="black")
    for x, y, name in points:
        axes.annotate(name, (x, y), fontsize=5, xytext=(2, 2), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set(xlabel="FLOP a byte that must move", ylabel="GFLOP/s, counted as direct arithmetic", title=caption(record))
    axes.legend()
    return True


def growth(record: Row, figure: Figure) -> bool:
    """Time of a 3x3 convolution as its batch, channels or pixels grow."""
    grown = tables.growth(record["rows"])
    if not grown:
        return False
    figure.set_size_inches(4 * len(grown), 3.5)
    for axes, (axis, series) in zip(figure.subplots(1, len(grown), squeeze=False)[0], grown.items(), strict=True):
        for who, points in series.items():
            slope = f", ~ {axis}^{tables.exponent(points):.2f}" if len(points) > 1 else ""
            axes.plot(*zip(*points, strict=True), marker="o", label=who + slope)
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms")
        axes.legend(fontsize=7)
    figure.suptitle(caption(record))
    return True


def caption(record: Row) -> str:
    commit = (record["commit"] or "unknown")[:10]
    return f"{record['cpu']}, {record['threads']} threads, {record['date'][:10]}, commit {commit}"
