"""Mutants of the ops, the graphs, the projections and the analyses."""

from mutant import Mutant

GRAPHS = "tests/graph/test_graphs.py"
DECONVNET = "tests/deconvnet/test_deconvnet.py"
OCCLUSION = "tests/analyses/test_occlusion.py"

OPS_AND_GRAPHS = [
    # Ops
    Mutant(
        "gather-s-gradient-onto-a-turned-map",
        "zfkernels/ops/max_pool.py",
        "ctx.input_shape = g.shape",
        "ctx.input_shape = (*g.shape[:2], g.shape[3], g.shape[2])",
        "tests/ops/test_ops.py",
    ),
    Mutant(
        "transposed-convolution-s-weight-unrectified",
        "zfkernels/ops/conv.py",
        "            y = torch.relu(y) if rectify else y\n",
        "",
        "tests/ops/test_ops.py",
    ),
    Mutant(
        "pool-that-starts-beyond-the-map",
        "zfkernels/window.py",
        "return windows - 1 if (windows - 1) * stride >= size + padding else windows",
        "return windows - 1 if (windows - 1) * stride > size + padding else windows",
        "tests/test_window.py",
    ),
    Mutant(
        "receptive-field-forgets-the-padding-above",
        "zfkernels/window.py",
        "field.start - padding * field.stride",
        "field.start - padding",
        "tests/test_window.py",
    ),
    Mutant(
        "switches-of-another-device",
        "zfkernels/ops/checks.py",
        "    if value.device != y.device:",
        "    if value.device is None:",
        "tests/ops/test_errors.py",
    ),
    Mutant(
        "cpu-reads-strided-memory-as-dense",
        "zfkernels/backends/cpu.py",
        "return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous("
        "memory_format=torch.channels_last)",
        "return x if x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous() else x.contiguous("
        "memory_format=torch.channels_last)",
        "tests/backends/test_backends.py -k 'test_against_reference and cpu and pool2d'",
    ),
    Mutant(
        "a-window-of-257-pixels",
        "zfkernels/ops/checks.py",
        "if kernel[0] * kernel[1] > LARGEST_WINDOW:",
        "if kernel[0] * kernel[1] > LARGEST_WINDOW + 1:",
        "tests/ops/test_errors.py",
    ),
    # Graph
    Mutant(
        "regions-begin-a-window-late",
        "zfkernels/graph/regions.py",
        "low = -(-(x.origins + padding - window + 1) // stride)",
        "low = -(-(x.origins + padding - window + 2) // stride)",
        OCCLUSION,
    ),
    Mutant(
        "regions-end-a-window-early",
        "zfkernels/graph/regions.py",
        "high = (x.origins + x.pixels.shape[2:] - 1 + padding) // stride + 1",
        "high = (x.origins + x.pixels.shape[2:] - 2 + padding) // stride + 1",
        OCCLUSION,
    ),
    Mutant(
        "batch-norm-without-its-epsilon",
        "zfkernels/graph/windowed.py",
        "torch.rsqrt(norm.running_var + norm.eps)",
        "torch.rsqrt(norm.running_var)",
        GRAPHS,
    ),
    Mutant(
        "average-counts-its-padding",
        "zfkernels/graph/windowed.py",
        "return last - first if self.count_include_pad else",
        "return last - first if not self.count_include_pad else",
        GRAPHS,
    ),
    Mutant(
        "regions-fill-a-pool-s-margin-with-0",
        "zfkernels/graph/windowed.py",
        "    margin = -math.inf\n",
        "    margin = 0.0\n",
        OCCLUSION,
    ),
    Mutant(
        "padding-of-the-other-side",
        "zfkernels/graph/windowed.py",
        "first = tuple(self.padding[a] - self.before[a] for a in (0, 1))",
        "first = tuple(self.padding[a] - self.after[a] for a in (0, 1))",
        f"{GRAPHS} {OCCLUSION} tests/deconvnet",
    ),
    Mutant(
        "a-cap-has-a-gradient",
        "zfkernels/graph/layer.py",
        "g, own = passed_on(g, passed, own, self.cap), True",
        "g, own = passed_on(g, passed, own), True",
        GRAPHS,
    ),
    Mutant(
        "fields-of-a-sum-are-those-of-one-branch",
        "zfkernels/graph/run.py",
        "reach[stride] = min(low, least), max(high, most)",
        "reach[stride] = low, high",
        GRAPHS,
    ),
    Mutant(
        "a-sum-changes-what-others-read",
        "zfkernels/graph/steps.py",
        "            return x.relu_() if self.in_place else x.relu()\n",
        "            return x.relu_()\n",
        GRAPHS,
    ),
    # Deconvnet
    Mutant(
        "guided-own-forward-is-the-gradient",
        "zfkernels/deconvnet/signals.py",
        '        if self.rules.method == "guided" and y.requires_grad:\n'
        "            y.register_hook(lambda g: rectified(g, slope))\n",
        "",
        "tests/deconvnet/test_any_model.py",
    ),
    Mutant(
        "a-branch-s-signal-is-shared",
        "zfkernels/deconvnet/cones.py",
        "    shared = box._replace(own=False)\n",
        "    shared = box\n",
        GRAPHS,
    ),
    Mutant(
        "a-single-unit-takes-another-winner",
        "zfkernels/deconvnet/single.py",
        "units.positions * pool.stride - pool.padding + inside",
        "units.positions * pool.stride + inside",
        DECONVNET,
    ),
    Mutant(
        "deconvnet-does-not-rectify-the-unit",
        "zfkernels/deconvnet/single.py",
        'return values.relu() if layer.rectify and rules.method != "gradient" else values',
        "return values",
        f"{GRAPHS} {DECONVNET}",
    ),
    Mutant(
        "raised-signals-stay-raised",
        "zfkernels/deconvnet/cones.py",
        "paste(pixels[row], box, top, left, fields[row], 1 / factor)",
        "paste(pixels[row], box, top, left, fields[row])",
        DECONVNET,
    ),
    Mutant(
        "something-outside-the-field",
        "zfkernels/deconvnet/boxes.py",
        "            g[i, :, rows, columns] = 0\n",
        "            g[i, :, rows, columns] *= 1\n",
        f"{DECONVNET} tests/deconvnet/test_boxes.py",
    ),
    # Occlusion and the strongest activations
    Mutant(
        "the-last-window-is-left-out",
        "zfkernels/analyses/occlusion.py",
        "count = -(-(size - length) // step) + 1",
        "count = (size - length) // step + 1",
        OCCLUSION,
    ),
    Mutant(
        "softmax-of-a-softmax",
        "zfkernels/analyses/occlusion.py",
        'if last in ("softmax", "sigmoid"):',
        'if last in ("sigmoid",):',
        OCCLUSION,
    ),
    Mutant(
        "a-fill-that-is-not-finite",
        "zfkernels/analyses/occlusion.py",
        "    if not bool(torch.isfinite(cover).all()):",
        "    if bool(torch.isnan(cover).all()):",
        OCCLUSION,
    ),
    Mutant(
        "the-window-covers-the-image-itself",
        "zfkernels/analyses/covering.py",
        "self.image.expand(len(windows), -1, -1, -1).clone()",
        "self.image.expand(len(windows), -1, -1, -1)",
        OCCLUSION,
    ),
    Mutant(
        "of-equals-the-later-image-ranks-first",
        "zfkernels/analyses/activations.py",
        "order = images.argsort(dim=1, stable=True)",
        "order = images.argsort(dim=1, stable=True, descending=True)",
        "tests/analyses/test_activations.py",
    ),
    Mutant(
        "an-image-met-twice-counts-twice",
        "zfkernels/analyses/activations.py",
        "repeated[:, 1:] = in_order[:, 1:] == in_order[:, :-1]",
        "repeated[:, 1:] = False",
        "tests/analyses/test_activations.py",
    ),
    Mutant(
        "a-continued-search-looks-again",
        "zfkernels/analyses/activations.py",
        "        if count < done:\n            continue\n",
        "",
        "tests/analyses/test_activations.py",
    ),
    Mutant(
        "huge-signals-overflow",
        "zfkernels/deconvnet/cones.py",
        "if factor > 1 and not torch.isfinite(maps.sum()):",
        "if factor > 1 and torch.isnan(maps.sum()):",
        DECONVNET,
    ),
    Mutant(
        "a-box-that-leaves-its-map",
        "zfkernels/deconvnet/boxes.py",
        "low = np.minimum(low, np.array(limit) - size)",
        "low = np.minimum(low, np.array(limit))",
        f"{GRAPHS} tests/deconvnet/test_boxes.py",
    ),
]
