"""zfkernels beside torch eager, ONNX Runtime and OpenVINO: one interleaved run, ratios of medians.

    python benchmarks/compare.py --ops conv,pool --n 1,8 --threads 2
    python benchmarks/compare.py --quick --ops conv3
    python benchmarks/compare.py --json out.json; python benchmarks/compare.py --show out.json

Each contender's result is compared with float64 first: a wrong result has no time. Then rounds: in each, every
contender runs one burst of calls, in a shuffled order, so that a slow second of the machine hits all of them. The
time of a round is the median of its calls; the ratio is the median over rounds of the peer's time by ours, of the same
round: above 1 we are faster.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

PAUSE = 0.02  # seconds before a burst, for the threads of the peer before it to stop spinning on our cores
BOUND = 1e-5  # relative error in norm that a float32 result may have
MALLOC = "GLIBC_TUNABLES"
KEEP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", default="", help="prefixes of case names, by commas (conv,pool1,fused); default: all")
    parser.add_argument("--n", default="1,8", help="batch sizes, by commas")
    parser.add_argument("--threads", type=int, default=2, help="threads for every contender")
    parser.add_argument("--backend", default="cpu", help="the zfkernels backend that is compared")
    parser.add_argument("--peers", default="eager,ort,openvino", help="which peers run, where installed")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--busy", action="store_true", help="a shared machine: the fastest call of a burst, not the median"
    )
    parser.add_argument("--keep-malloc", action="store_true", help="let malloc keep big blocks, for all contenders")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print the table of a JSON that --json wrote, and stop"
    )
    parser.add_argument("--list", action="store_true", help="print the case names and stop")
    return parser.parse_args(argv)


def chosen(wanted: str, names: list[str]) -> list[str]:
    """The names that a comma list asks for: by exact name, else by op (the name without its layer)."""
    if not wanted:
        return names
    parts = [p.strip() for p in wanted.split(",") if p.strip()]
    for part in parts:
        if not any(part in (n, n.rstrip("0123456789")) for n in names):
            raise SystemExit(f"--ops: no case {part!r}; the cases are {', '.join(names)}")
    return [n for n in names if n in parts or n.rstrip("0123456789") in parts]


def error(case, who: str) -> float:
    """The worst relative error in norm over the outputs that have a right answer; inf for a NaN or a wrong shape."""
    import torch

    worst = 0.0
    for out, right in zip(case.run[who](), case.right, strict=False):
        out = torch.as_tensor(out)
        if right.dtype == torch.uint8:
            if out.dtype == torch.uint8:
                worst = max(worst, float((out != right).sum()))
            continue  # a peer's indices have its own convention
        if out.shape != right.shape or not bool(out.isfinite().all()):
            return float("inf")
        difference = out.double() - right
        if who in case.ignores_collisions:
            difference = difference.masked_fill(case.collisions, 0)
        worst = max(worst, float(difference.norm() / right.norm()))
    return worst


def burst(run, calls: int, of=statistics.median) -> float:
    """The seconds of a call: their median, or what `of` makes of them, after one that is not counted."""
    run()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return of(times)


def timed(runs: dict, rounds: int, seconds: float, of=statistics.median) -> dict[str, list[float]]:
    """Seconds a call, for each contender and round."""
    calls = {who: max(2, min(200, int(seconds / max(burst(run, 2), 1e-7)))) for who, run in runs.items()}
    times = {who: [] for who in runs}
    order, shuffle = list(runs), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for who in order:
            time.sleep(PAUSE)
            times[who].append(burst(runs[who], calls[who], of))
    return times


def measure(case, rounds: int, seconds: float, of=statistics.median) -> dict:
    """One row: the error of every contender, the times and ratios of those that are right."""
    errors = {who: error(case, who) for who in case.run}
    times = timed({who: run for who, run in case.run.items() if errors[who] <= BOUND}, rounds, seconds, of)
    row = {"case": case.name, "n": case.n, "flops": case.flops, "bytes": case.bytes, "errors": errors}
    row["ms"] = {who: statistics.median(t) * 1e3 for who, t in times.items()}
    row["ms_quartiles"] = {who: [q * 1e3 for q in statistics.quantiles(t, n=4)] for who, t in times.items()}
    if ours := times.get("zfkernels"):
        pairs = {who: [a / b for a, b in zip(t, ours, strict=True)] for who, t in times.items() if who != "zfkernels"}
        row["ratio"] = {who: statistics.median(p) for who, p in pairs.items()}
    return row


def heading() -> str:
    return f"{'case':<13}{'N':>3} {'ours ms':>9} {'':>15} {'eager':>9} {'':>7} {'ORT':>9} {'':>7} {'OpenVINO':>9}"


def line(row: dict) -> str:
    ms, ratio = row["ms"], row.get("ratio", {})
    cells = [f"{row['case']:<13}{row['n']:>3}"]
    if "zfkernels" in ms:
        rate = (row["flops"] or row["bytes"]) / ms["zfkernels"] / 1e6
        cells.append(f"{ms['zfkernels']:>9.3f} {rate:>7.1f} {'GFLOP/s' if row['flops'] else 'GB/s':<7}")
    else:
        cells.append(f"{'WRONG':>9} {row['errors']['zfkernels']:>15.1e}")
    eager = {who: t for who, t in ms.items() if who.startswith("eager")}
    best = min(eager, key=eager.get, default=None)
    for who in (best, "ort", "openvino"):
        if who in ms:
            cells.append(f"{ms[who]:>9.3f} " + (f"{ratio[who]:>6.2f}x" if who in ratio else f"{'':>7}"))
        else:
            cells.append(f"{'wrong' if who in row['errors'] else '-':>9} {'':>7}")
    cells.append(best or "")
    return " ".join(cells)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if args.keep_malloc and os.environ.get(MALLOC) != KEEP:  # malloc reads it at start only
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {MALLOC: KEEP})

    if args.show:
        print(heading(), *map(line, json.loads(args.show.read_text())["rows"]), sep="\n")
        return 0

    import peers
    import record
    import torch

    if args.list:
        print("\n".join(peers.names()))
        return 0
    torch.set_num_threads(args.threads)
    names, sizes = chosen(args.ops, peers.names()), [int(n) for n in args.n.split(",")]
    rounds, seconds = (3, 0.03) if args.quick else (9, 0.12)
    print(heading())
    rows = []
    with torch.no_grad():
        for name in names:
            for n in sizes:
                case = peers.make(name, n, args.backend, args.threads, tuple(args.peers.split(",")))
                rows.append(measure(case, rounds, seconds, min if args.busy else statistics.median))
                print(line(rows[-1]), flush=True)
    if args.json:
        head = record.environment(args.backend) | {
            "threads": args.threads,
            "keep_malloc": args.keep_malloc,
            "busy": args.busy,
        }
        head |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "rounds": rounds}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    return 0 if all("zfkernels" in row["ms"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
