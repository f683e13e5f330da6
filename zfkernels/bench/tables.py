"""A run's record as text: for the terminal, and for README.md."""

import math
from collections.abc import Iterable, Iterator
from textwrap import wrap

from .jobs import JOBS
from .measure import OURS
from .peers import PEERS
from .record import Row

SHORT = {"eager": "eager", "compile": "compile", "onednn": "oneDNN", "ort": "ORT", "openvino": "OpenVINO"} | {
    "autograd": "autograd",
    "captum": "Captum",
}
GROUPS = {"op": "ops", "network": "networks", "others": "other networks' layers", "models": "compiled networks"}
NAMES = SHORT | {"compile": "torch.compile", "ort": "ONNX Runtime"}
# The jobs that README.md shows of a run; benchmarks/README.md shows them all
HEADLINES = ("conv3", "fused1", "project", "atlas", "step")


def heading() -> str:
    peers = "".join(f"{SHORT[peer]:>10}" for peer in PEERS)
    return f"{'job':<24}{'N':>4}{'ours ms':>10}{'spread':>8}{'rate':>16}{'floor':>7}   {'fastest peer':<30}{peers}"


def line(row: Row) -> str:
    """Our time, spread between quartiles, rate, the floor's share; the fastest peer; each peer's best ratio."""
    if OURS not in row["ms"]:
        return f"{row['job']:<24}{row['n']:>4}{'WRONG':>10}  error {row['errors'][OURS]}"
    ms = row["ms"][OURS]
    if row["items"] != row["n"]:
        rate = f"{row['items'] / ms * 1e3:.1f} /s"
    elif row["flops"]:
        rate = f"{row['flops'] / ms / 1e6:.1f} GFLOP/s"
    elif not row["bytes"]:
        rate = f"{1e3 / ms:.1f} /s"
    else:
        rate = f"{row['bytes'] / ms / 1e6:.1f} GB/s"
    floor = f"{row['floor_ms'] / ms:.0%}" if "floor_ms" in row else "-"
    fastest = row["fastest"]
    first = f"{row['ratio'][fastest]:.2f}x {fastest}" if fastest else "none"
    cells = [f"{row['job']:<24}{row['n']:>4}{ms:>10.3f}{row['spread'][OURS]:>8.0%}{rate:>16}{floor:>7}   {first:<30}"]
    cells += [f"{cell(row, peer):>10}" for peer in PEERS]
    if row["again"] or row["noisy"]:
        cells.append(f"  ({row['again']} noisy rounds measured again, {row['noisy']} left)")
    return "".join(cells)


def cell(row: Row, peer: str) -> str:
    """The ratio of a peer's fastest contender, "wrong", or "-" where it has none."""
    times = {who: t for who, t in row["ms"].items() if who.split()[0] == peer}
    if times:
        return f"{row['ratio'][min(times, key=times.__getitem__)]:.2f}x"
    return "wrong" if any(who.split()[0] == peer for who in row["errors"]) else "-"


def geometric_mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def exponent(points: list[tuple[float, float]]) -> float:
    """The slope of the line through the logarithms, by least squares."""
    xs, ys = ([math.log(p[i]) for p in points] for i in (0, 1))
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - mean_x) ** 2 for x in xs)


def growth(rows: list[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """axis -> contender -> (size along the axis, ms), for ours and the fastest eager."""
    result: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        if row["job"].startswith("grow-") and OURS in row["ms"]:
            _, axis, value = row["job"].split("-")
            series = result.setdefault(axis, {})
            series.setdefault(OURS, []).append((int(value), row["ms"][OURS]))
            if peers := [t for who, t in row["ms"].items() if who.startswith("eager")]:
                series.setdefault("eager", []).append((int(value), min(peers)))
    return result


def summaries(record: Row) -> list[str]:
    """What follows the table: groups of jobs, growth, memory, threads, ceilings, what is missing and why."""
    return [
        *group_lines(record["rows"]),
        *growth_lines(record["rows"]),
        *map(memory_line, record.get("memory", [])),
        *map(thread_line, record.get("threads_scaling", [])),
        *map(ceiling_line, filter(None, [record.get("ceilings")])),
        *missing_lines(record["rows"]),
    ]


def group_lines(rows: list[Row]) -> Iterator[str]:
    groups: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        words = words_of(row["job"])
        if words and row.get("fastest"):
            groups.setdefault(words, {})[row["job"], row["n"]] = row["ratio"][row["fastest"]]
    for words, ratios in groups.items():
        job, n = min(ratios, key=ratios.__getitem__)
        ahead = sum(r > 1 for r in ratios.values())
        yield (
            f"{words}: {geometric_mean(ratios.values()):.2f}x the fastest peer on the geometric mean, ahead in "
            f"{ahead} of {len(ratios)}, at worst {ratios[job, n]:.2f}x ({job}, N = {n})"
        )


def words_of(job: str) -> str | None:
    """What a line of the summary calls the jobs that it is of; other packages' networks by what is done with them."""
    group = JOBS[job].group
    return f"nets, {job.partition('-')[2]}" if group == "nets" else GROUPS.get(group)


def growth_lines(rows: list[Row]) -> Iterator[str]:
    for axis, series in growth(rows).items():
        parts = ", ".join(f"{who} ~ {axis}^{exponent(points):.2f}" for who, points in series.items() if len(points) > 1)
        if parts:
            expected = {"n": 1, "channels": 2, "pixels": 2}[axis]
            yield f"time of a 3x3 convolution: {parts} (its arithmetic: ^{expected})"


def thread_line(row: Row) -> str:
    most = max(row["ms"], key=int)
    return (
        f"threads: {row['job']}, N = {row['n']}: {most} threads {row['speedup']:.2f}x as fast as one "
        f"({row['ms'][most]:.2f} and {row['ms']['1']:.2f} ms)"
    )


def ceiling_line(ceilings: Row) -> str:
    rates = [rate / 1e9 for rate in ceilings["copies"].values()]
    return (
        f"ceilings: {ceilings['flops'] / 1e9:.0f} GFLOP/s (matrix product); copying {min(rates):.0f} to "
        f"{max(rates):.0f} GB/s (large, in cache)"
    )


def missing_lines(rows: list[Row]) -> Iterator[str]:
    jobs: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for who, why in row["missing"].items():
            jobs.setdefault((who, why), []).append(f"{row['job']} N = {row['n']}")
    for (who, why), names in jobs.items():
        first = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield f"no time for {who}: {why} ({first})"


def memory_line(row: Row) -> str:
    above = {who: (b["peak"] - b["held"]) / 2**20 for who, b in row["bytes"].items()}
    parts = [f"{who} {mb:.0f} MB" for who, mb in above.items()]
    parts += [f"{who} failed: {why}" for who, why in row["missing"].items()]
    eager = [mb for who, mb in above.items() if who != OURS]
    ratio = f"; {above[OURS] / min(eager):.0%} of the leaner eager" if OURS in above and eager and min(eager) else ""
    return f"memory above weights and images: {row['job']}, N = {row['n']}: {', '.join(parts)}{ratio}"


def table(record: Row) -> str:
    """The whole record for a terminal."""
    return "\n".join([heading(), *map(line, record["rows"]), "", *summaries(record)])


# README.md


def markdown(record: Row, source: str, jobs: Iterable[str]) -> str:
    """A line a job, the ratio to the fastest peer at each N; `source` is the JSON's path."""
    jobs = [job for job in jobs if any(row["job"] == job for row in record["rows"])]
    sizes = sorted({row["n"] for row in record["rows"] if row["job"] in jobs and JOBS[row["job"]].sizes is None})
    own = {(row["job"], row["n"]): row for row in record["rows"]}
    lines = [
        f"| job | {' | '.join(f'N = {n}' for n in sizes)} | ours, ms |",
        "|---|" + "---|" * (len(sizes) + 1),
    ]
    for job in jobs:
        fixed = JOBS[job].sizes
        cells = [markdown_cell(own.get((job, n))) for n in (fixed or sizes)]
        cells += [""] * (len(sizes) - len(cells))
        times = [own[job, n]["ms"].get(OURS) for n in (fixed or sizes) if (job, n) in own]
        text = JOBS[job].text + (f" (N = {fixed[0]})" if fixed and job != "atlas" else "")
        lines.append(f"| {text} | {' | '.join(cells)} | {times[-1] or 0:.3g} |")
    return "\n".join([*lines, "", *folded(run_of(record, source))])


def shown(record: Row, groups: Iterable[str]) -> list[str]:
    """The jobs of these groups that a record has."""
    return [job for job in JOBS if JOBS[job].group in groups and any(row["job"] == job for row in record["rows"])]


def run_of(record: Row, source: str) -> str:
    """Which machine, peers and kernels the record is of."""
    return (
        f"{record['cpu']}, {record['threads']} threads, {record['isa']}, torch {record['torch']}, "
        f"ONNX Runtime {record['onnxruntime']}, OpenVINO {record['openvino']}; {record['date'][:10]}, kernels of "
        f"commit {(record['commit'] or 'unknown')[:10]} (csrc {(record['csrc_sha256'] or 'unknown')[:10]}). From "
        f"[{source}]({source}) by `python benchmarks/readme.py`; the milliseconds are of the largest N."
    )


def listed_summaries(record: Row) -> str:
    return "\n".join(f"- {text}" for text in summaries(record) if not text.startswith("no time"))


def folded(text: str) -> list[str]:
    return wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def markdown_cell(row: Row | None) -> str:
    if row is None:
        return ""
    if OURS not in row["ms"]:
        return "wrong"
    fastest = row["fastest"]
    return f"{row['ratio'][fastest]:.2f} ({NAMES[fastest.split()[0]]})" if fastest else "no peer"


def replaced(text: str, name: str, content: str) -> str:
    """`text` with what stands between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->` replaced."""
    first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the text must have the lines {first} and {last}")
    return f"{before}{first}\n{content}\n{last}{after}"
