"""A full occlusion map beside Captum's Occlusion: the same network, image, windows and fill, in one run.

    python benchmarks/occlusion.py                       # ZFNet, 224x224, patches of 56 and 28 at stride 4
    python benchmarks/occlusion.py --patches 28 --stride 16 --rounds 1     # a first look
    python benchmarks/occlusion.py --json benchmarks/results/<device>/occlusion.json

Needs `pip install captum`. Captum runs the network on whole covered images, `--batch` windows a pass
(`perturbations_per_eval`), with our kernels in the network ("captum") and with torch's own ("captum, torch"). Its
windows lie at multiples of the stride and the last one is cut at the edge, as ours. It returns the mean fall of the
logit over the windows that cover a pixel, so ours is averaged in the same way. The mean logits of each pixel are
compared, because falls are differences of nearly equal numbers: they may differ by 1e-5, relative in norm, or the run
ends with exit code 1 and no times. Contenders take turns; a ratio is the median over rounds of theirs / ours within one
round.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import zfkernels as zf
from zfkernels.analyses.occlusion import OcclusionMap
from zfkernels.bench import record
from zfkernels.bench.checks import BOUND
from zfkernels.bench.networks import twin

FILL = 0.5


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, nargs="+", default=[56, 28])
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    try:
        import captum  # noqa: F401
    except ImportError:
        print("this needs Captum: pip install captum", file=sys.stderr)
        return 2

    torch.manual_seed(0)
    # He's weights: with the paper's, activations shrink until no window changes the logit
    model = zf.ZFNet(weight_std=None).eval().to(args.device)
    image = torch.randn(3, 224, 224, device=args.device)
    rows = []
    for patch in args.patches:
        rows.append(measured(args, model, image, patch))
        if max(rows[-1]["errors"].values()) > BOUND:
            print(f"patch {patch}: the results differ: {rows[-1]['errors']}", file=sys.stderr)
            return 1
        print(text(rows[-1]))
    if args.json:
        run = {"threads": args.threads, "batch": args.batch, "device": args.device, "rows": rows}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record.environment("cpu" if args.device == "cpu" else "cuda") | run, indent=1))
    return 0


def contenders(args: argparse.Namespace, model: zf.ZFNet, image: Tensor, patch: int) -> dict[str, Callable]:
    from captum.attr import Occlusion

    with torch.no_grad():
        target = int(model(image[None]).argmax())

    def ours() -> OcclusionMap:
        return zf.occlusion_map(model, image, target, patch=patch, stride=args.stride, fill=FILL, batch_size=args.batch)

    def captums(network: torch.nn.Module) -> Tensor:
        window, stride = (3, patch, patch), (3, args.stride, args.stride)
        with torch.no_grad():
            return Occlusion(network).attribute(
                image[None], window, stride, FILL, target, perturbations_per_eval=args.batch
            )

    torchs = twin(model, torch.contiguous_format)
    return {"zfkernels": ours, "captum": lambda: captums(model), "captum, torch": lambda: captums(torchs)}


def measured(args: argparse.Namespace, model: zf.ZFNet, image: Tensor, patch: int) -> dict:
    """One row: the seconds of each contender in each round, errors and ratios of Captum's."""
    times: dict[str, list[float]] = {}
    results = {}
    calls = contenders(args, model, image, patch)
    for _ in range(args.rounds):
        for name, call in calls.items():
            synchronize(args.device)
            start = time.perf_counter()
            results[name] = call()
            synchronize(args.device)
            times.setdefault(name, []).append(time.perf_counter() - start)
    ours = averaged(results["zfkernels"], image.shape[1:])
    errors, ratios = {}, {}
    for name in ("captum", "captum, torch"):
        theirs = results["zfkernels"].clear_logit - results[name][0, 0].cpu().double()
        errors[name] = float((ours - theirs).norm() / theirs.norm())
        ratios[name] = median(t / o for t, o in zip(times[name], times["zfkernels"], strict=True))
    row = {"patch": patch, "stride": args.stride, "windows": results["zfkernels"].logit.numel()}
    return row | {"seconds": times, "errors": errors, "ratio": ratios}


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def averaged(result: OcclusionMap, size: tuple[int, int]) -> Tensor:
    """The mean logit over the windows that cover each pixel."""
    total, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    boxes = result.boxes.reshape(-1, 4).tolist()
    for logit, (top, left, bottom, right) in zip(result.logit.double().flatten(), boxes, strict=True):
        total[top:bottom, left:right] += logit
        count[top:bottom, left:right] += 1
    return total / count


def text(row: dict) -> str:
    lines = [f"patch {row['patch']}, stride {row['stride']}: {row['windows']} windows"]
    for name, seconds in row["seconds"].items():
        middle = median(seconds)
        line = f"  {name:<14} {middle:8.2f} s  {1e3 * middle / row['windows']:7.2f} ms a window"
        if name in row["ratio"]:
            line += f"  {row['ratio'][name]:6.2f} x ours  error {row['errors'][name]:.1e}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
