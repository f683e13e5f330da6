"""A full occlusion map beside Captum's Occlusion: the same network, image, windows and fill, in one run.

    python benchmarks/occlusion.py                       # ZFNet, 224x224, patches of 56 and 28 at stride 4
    python benchmarks/occlusion.py --patches 28 --stride 16 --rounds 1     # a first look
    python benchmarks/occlusion.py --json benchmarks/results/<device>/occlusion.json

Needs `pip install captum`. Captum runs the network on whole covered images, `--batch` windows a pass
(`perturbations_per_eval`), with our kernels in the network ("captum") and with torch's own ("captum, torch"). Its
windows lie at multiples of the stride and the last one is cut at the edge, as ours. It returns the mean fall of the
logit over the windows that cover a pixel, so ours is averaged in the same way; the mean logits of each pixel (for falls
are differences of near equals) may differ by 1e-5, relative in norm, or the run ends with exit code 1 and no times.
Contenders take turns; a ratio is the median over rounds of theirs / ours within one round.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

import zfkernels as zf
from zfkernels.bench import record

BOUND = 1e-5


class Plain(nn.Module):
    """A ZFNet in torch's own layers, with its weights."""

    def __init__(self, model: zf.ZFNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for row in self.model.table:
            layer, m = row.layer, getattr(self.model, row.layer.name)
            if layer.kind == "conv":
                x = F.relu(F.conv2d(x, m.weight, m.bias, m.stride, m.padding))
            elif layer.kind == "pool":
                x = F.max_pool2d(x, m.kernel_size, m.stride, m.padding, ceil_mode=m.ceil_mode)
            elif layer.kind == "norm":
                x = F.local_response_norm(x, m.size, m.alpha, m.beta, m.k)
            else:
                x = F.linear(x.flatten(1), m.weight, m.bias)
                x = x if row is self.model.table[-1] else F.relu(x)
        return x


def averaged(result, size: tuple[int, int]) -> torch.Tensor:
    """The mean logit over the windows that cover each pixel."""
    total, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for logit, (top, left, bottom, right) in zip(
        result.logit.double().flatten(), result.boxes.reshape(-1, 4).tolist(), strict=True
    ):
        total[top:bottom, left:right] += logit
        count[top:bottom, left:right] += 1
    return total / count


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, nargs="+", default=[56, 28])
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        from captum.attr import Occlusion
    except ImportError:
        print("this needs Captum: pip install captum", file=sys.stderr)
        return 2

    torch.manual_seed(0)
    # He's weights: with the paper's, activations shrink until no window changes the logit
    model = zf.ZFNet(weight_std=None).eval().to(args.device)
    image = torch.randn(3, 224, 224, device=args.device)
    with torch.no_grad():
        target = int(model(image[None]).argmax())
    fill = 0.5
    rows = []
    for patch in args.patches:
        window, stride = (3, patch, patch), (3, args.stride, args.stride)

        def ours(patch=patch):
            return zf.occlusion_map(
                model, image, target, patch=patch, stride=args.stride, fill=fill, batch_size=args.batch
            )

        def captums(net, window=window, stride=stride):
            with torch.no_grad():
                return Occlusion(net).attribute(
                    image[None], window, stride, fill, target, perturbations_per_eval=args.batch
                )

        contenders = {
            "zfkernels": ours,
            "captum": lambda captums=captums: captums(model),
            "captum, torch": lambda captums=captums: captums(Plain(model)),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        results = {}
        for _ in range(args.rounds):
            for name, call in contenders.items():
                if args.device != "cpu":
                    torch.cuda.synchronize()
                start = time.perf_counter()
                results[name] = call()
                if args.device != "cpu":
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - start)
        mine = averaged(results["zfkernels"], image.shape[1:])
        errors = {}
        for name in ("captum", "captum, torch"):
            theirs = results["zfkernels"].clear_logit - results[name][0, 0].cpu().double()
            errors[name] = float((mine - theirs).norm() / theirs.norm())
        if max(errors.values()) > BOUND:
            print(f"patch {patch}: the results differ: {errors}", file=sys.stderr)
            return 1
        windows = results["zfkernels"].logit.numel()
        ratios = {name: median(t / o for t, o in zip(times[name], times["zfkernels"], strict=True)) for name in errors}
        rows.append({"patch": patch, "stride": args.stride, "windows": windows, "seconds": times, "errors": errors,
                     "ratio": ratios})  # fmt: skip
        print(f"patch {patch}, stride {args.stride}: {windows} windows")
        for name in contenders:
            text = f"  {name:<14} {median(times[name]):8.2f} s  {1e3 * median(times[name]) / windows:7.2f} ms a window"
            if name in ratios:
                text += f"  {ratios[name]:6.2f} x ours  error {errors[name]:.1e}"
            print(text)
    if args.json:
        run = {"threads": args.threads, "batch": args.batch, "device": args.device, "rows": rows}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record.environment("cpu" if args.device == "cpu" else "cuda") | run, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
