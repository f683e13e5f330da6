"""Mutants of the Python package."""

from mutant import Mutant

RECIPE = "tests/training/test_recipe.py"
RUNS = "tests/training/test_runs.py"
GRAPHS = "tests/graph/test_graphs.py"
DECONVNET = "tests/deconvnet/test_deconvnet.py"
OCCLUSION = "tests/analyses/test_occlusion.py"
PICTURES = "tests/data/test_pictures.py"

PYTHON = [
    # Training
    Mutant(
        "resume-loses-the-schedule",
        "zfkernels/training/fit.py",
        "plan.rate([line.error for line in history])",
        "plan.rate([line.error for line in history if state is None])",
        RECIPE,
    ),
    Mutant(
        "short-batch-by-the-full-batch-size",
        "zfkernels/training/fit.py",
        "(loss * (world / size)).backward()",
        "(loss * (world / plan.batch_size)).backward()",
        RECIPE,
    ),
    Mutant(
        "clamp-before-the-step",
        "zfkernels/training/fit.py",
        "        trained.optimiser.step()\n        if plan.filter_rms is not None:\n"
        "            clamp_filters_(model, plan.filter_rms)\n",
        "        if plan.filter_rms is not None:\n            clamp_filters_(model, plan.filter_rms)\n"
        "        trained.optimiser.step()\n",
        RECIPE,
    ),
    Mutant(
        "evaluation-averages-the-logits",
        "zfkernels/training/fit.py",
        "logits.float().softmax(1).unflatten(0, (-1, len(which))).mean(1)",
        "logits.float().unflatten(0, (-1, len(which))).mean(1).softmax(1)",
        RECIPE,
    ),
    Mutant(
        "evaluation-leaves-the-model-in-its-mode",
        "zfkernels/training/fit.py",
        "    model.train(was_training)\n",
        "",
        RECIPE,
    ),
    Mutant(
        "momentum-is-not-resumed",
        "zfkernels/training/fit.py",
        '            optimiser.load_state_dict(state["optimiser"])\n',
        "",
        RECIPE,
    ),
    Mutant(
        "rate-falls-an-epoch-early",
        "zfkernels/training/recipe.py",
        "if waited > self.patience:",
        "if waited >= self.patience:",
        RECIPE,
    ),
    Mutant(
        "crops-are-never-mirrored",
        "zfkernels/training/crops.py",
        "return part.flip(-1) if which >= 5 else part",
        "return part.flip(-1) if which > 5 else part",
        RECIPE,
    ),
    Mutant(
        "dropout-keeps-the-scale",
        "zfkernels/training/processes.py",
        "return x * ((drawn[mine] >= module.p).to(x.dtype) / (1 - module.p))",
        "return x * (drawn[mine] >= module.p).to(x.dtype)",
        RECIPE,
    ),
    Mutant(
        "state-is-written-last",
        "zfkernels/training/history.py",
        "callbacks.append(lambda trained: _write_networks(",
        "callbacks.insert(0, lambda trained: _write_networks(",
        RUNS,
    ),
    Mutant(
        "best-epoch-is-the-last-of-equals",
        "zfkernels/training/run.py",
        "return min(self.history, key=lambda epoch: epoch.error)",
        "return min(reversed(self.history), key=lambda epoch: epoch.error)",
        f"{RUNS} -k best",
    ),
    Mutant(
        "halves-of-files-are-left",
        "zfkernels/training/history.py",
        "                half.unlink()\n",
        "                pass\n",
        f"{RUNS} -k half_written",
    ),
    Mutant(
        "folders-are-not-held",
        "zfkernels/training/history.py",
        "        hold(out)\n",
        "",
        f"{RUNS} -k two_processes",
    ),
    Mutant(
        "another-scale-is-resumed",
        "zfkernels/training/history.py",
        "if name in state and state[name] != given:",
        'if name == "side" and state[name] != given:',
        f"{RUNS} -k another_run",
    ),
    # Files
    Mutant(
        "checkpoints-may-run-code",
        "zfkernels/files.py",
        'torch.load(path, map_location="cpu", weights_only=True)',
        'torch.load(path, map_location="cpu", weights_only=False)',
        f"{RUNS} -k no_file_runs_code",
    ),
    Mutant(
        "nothing-says-that-a-file-could-run-code",
        "zfkernels/files.py",
        "which could run code and are not loaded",
        "which are not loaded",
        f"{RUNS} -k no_file_runs_code",
    ),
    Mutant(
        "checksums-are-not-looked-at",
        "zfkernels/files.py",
        "damaged = None if compressed else parts.testzip()",
        "damaged = None",
        f"{RUNS} -k damaged",
    ),
    Mutant(
        "a-full-disk-leaves-a-half-file",
        "zfkernels/files.py",
        "            beside.unlink(missing_ok=True)\n",
        "            pass\n",
        f"{RUNS} -k full_disk",
    ),
    Mutant(
        "a-full-disk-is-not-said",
        "zfkernels/files.py",
        "            if sink.error is not None:\n                raise sink.error\n",
        "",
        f"{RUNS} -k full_disk",
    ),
    Mutant(
        "a-stopped-write-is-another-error",
        "zfkernels/files.py",
        "        if isinstance(error.__context__, KeyboardInterrupt):",
        "        if isinstance(error.__context__, SystemExit):",
        "tests/survival/test_files.py",
    ),
    Mutant(
        "a-picture-s-name-ends-the-page-s-script",
        "zfkernels/drawing/templates/atlas.html",
        "{{ data|tojson }}",
        r"{{ data|tojson|replace('\\u003c', '<')|safe }}",
        "tests/analyses/test_atlas.py tests/drawing/test_page.py",
    ),
    Mutant(
        "circles-of-links-are-followed",
        "zfkernels/data/scan.py",
        "if identity in above:",
        "if identity in above[1:]:",
        "tests/data/test_scan.py",
    ),
    Mutant(
        "hidden-folders-are-classes",
        "zfkernels/data/scan.py",
        'if name.startswith("."):',
        'if name.startswith("._"):',
        "tests/data/test_scan.py",
    ),
    Mutant(
        "an-infinite-pixel-sets-the-range",
        "zfkernels/data/pictures.py",
        'finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values',
        'finite = values[~np.isnan(values)] if values.dtype.kind == "f" else values',
        PICTURES,
    ),
    Mutant(
        "unsigned-greys-have-a-sign",
        "zfkernels/data/pictures.py",
        "values.view(np.uint32) if unsigned else values",
        "values",
        PICTURES,
    ),
    Mutant(
        "twelve-bits-are-dark",
        "zfkernels/data/pictures.py",
        "DEPTHS = (8, 10, 12, 14, 16, 24)",
        "DEPTHS = (8, 10, 14, 16, 24)",
        PICTURES,
    ),
    Mutant(
        "transparent-colour-of-16-bits-is-kept",
        "zfkernels/data/pictures.py",
        "tuple(level >> 8 for level in transparent)",
        "tuple(level & 255 for level in transparent)",
        PICTURES,
    ),
    Mutant(
        "mean-and-std-are-of-bytes",
        "zfkernels/models/checkpoint.py",
        "(255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))",
        "(256 * torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))",
        "tests/models/test_load.py",
    ),
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
    # Deconvnet
    Mutant(
        "guided-own-forward-is-the-gradient",
        "zfkernels/deconvnet/signals.py",
        '        if self.rules.method == "guided" and y.requires_grad:\n'
        "            y.register_hook(lambda g: rectified(g, slope))\n",
        "",
        "tests/deconvnet/test_any_model.py",
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
    # Models
    Mutant(
        "filters-are-clamped-by-their-norm",
        "zfkernels/models/zfnet.py",
        "scale = (rms * filters.shape[1] ** 0.5 / size).clamp(max=1)",
        "scale = (rms * filters.shape[0] ** 0.5 / size).clamp(max=1)",
        "tests/models/test_zfnet.py -k clamp",
    ),
    # Who computes what on a GPU
    Mutant(
        "a-projection-s-wide-layers-by-the-device-s-first-backend",
        "zfkernels/graph/rules.py",
        "return checks.op_backend(self.backend, x, op, filters)",
        "return self.backend",
        "tests/backends/test_choice.py",
    ),
    Mutant(
        "a-backend-that-was-asked-for-is-passed-over",
        "zfkernels/ops/checks.py",
        "return backend(None, value, op, weight) if several_serve(value.device.type) else name",
        "return backends.order(value.device.type, op, weight.shape[1], True)[0]",
        "tests/backends/test_choice.py",
    ),
    Mutant(
        "a-compiled-layer-of-more-products-than-the-kernel-takes",
        "zfkernels/compiler/gpu.py",
        "channels > IMAGE_CHANNELS or depth > DEPTH or",
        "channels > IMAGE_CHANNELS or",
        "tests/compiler/test_on_gpu.py",
    ),
    Mutant(
        "a-batch-norm-s-shift-without-its-bias",
        "zfkernels/compiler/gpu.py",
        "shift = shift if beta is None else shift + beta",
        "shift = shift",
        "tests/compiler/test_on_gpu.py",
    ),
    Mutant(
        "a-part-s-leader-is-killed-alone",
        "benchmarks/on_gpu/processes.py",
        "        os.killpg(process.pid, signal.SIGKILL)",
        "        os.kill(process.pid, signal.SIGKILL)",
        "tests/bench/test_gpu.py -k group_ends",
    ),
    # The command line
    Mutant(
        "stopped-is-an-error-like-others",
        "zfkernels/cli.py",
        "        return 130\n",
        "        return 2\n",
        "tests/survival/test_signals.py -k 'continued and occlude'",
    ),
    Mutant(
        "an-error-of-two-lines",
        "zfkernels/cli.py",
        'text = " ".join(str(error).split())',
        "text = str(error)",
        "tests/commands/test_mistakes.py",
    ),
    Mutant(
        "copies-forget-their-rules",
        "zfkernels/deconvnet/deconvnet.py",
        'forward=state["forward"], rules=state["rules"])',
        'forward=state["forward"], rules=None)',
        "tests/deconvnet/test_any_model.py -k copies",
    ),
    Mutant(
        "a-hook-between-conv-and-pool-is-passed-over",
        "zfkernels/models/zfnet.py",
        "hooked._forward_hooks or hooked._forward_pre_hooks or",
        "hooked._forward_hooks or",
        "tests/models/test_zfnet.py -k hook",
    ),
]
