"""Mutants of the rest of the Python package."""

from mutant import Mutant

RECIPE = "tests/training/test_recipe.py"
RUNS = "tests/training/test_runs.py"
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
        "a-cut-field-does-not-fill-its-tile",
        "zfkernels/analyses/atlas.py",
        "        return frame(box, (high, -(-width * high // height)), size)\n",
        "        return frame(box, shape, size)\n",
        "tests/analyses/test_atlas.py",
    ),
    Mutant(
        "the-atlas-takes-images-up-map-by-map",
        "zfkernels/analyses/atlas.py",
        "key=lambda unit: int(top.images[unit])",
        "key=None",
        "tests/analyses/test_atlas.py",
    ),
    Mutant(
        "the-full-scale-is-one-rank-lower",
        "zfkernels/drawing/tiles.py",
        "values.topk(len(values) - int(place))",
        "values.topk(len(values) - int(place) + 1)",
        "tests/drawing/test_tiles.py",
    ),
    Mutant(
        "pictures-of-pages-are-all-loaded-at-once",
        "zfkernels/drawing/templates/picture.html",
        'loading="lazy"',
        'loading="eager"',
        "tests/drawing/test_page.py",
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
    # Models
    Mutant(
        "filters-are-clamped-by-their-norm",
        "zfkernels/models/zfnet.py",
        "scale = (rms * filters.shape[1] ** 0.5 / size).clamp(max=1)",
        "scale = (rms * filters.shape[0] ** 0.5 / size).clamp(max=1)",
        "tests/models/test_zfnet.py -k clamp",
    ),
    # What verify gives to a backend
    Mutant(
        "a-strided-tensor-is-dense-on-the-gpu",
        "zfkernels/testing/verify.py",
        "        moved = (a.to(device) if isinstance(a, Tensor) else a for a in plain)\n"
        "        args = tuple(placed(a, case.layout) if is_float(a) else a for a in moved)\n",
        "        moved = (placed(a, case.layout) if is_float(a) else a for a in plain)\n"
        "        args = tuple(a.to(device) if isinstance(a, Tensor) else a for a in moved)\n",
        "tests/testing/test_verify.py -k memory",
    ),
    Mutant(
        "a-case-s-memory-is-made-before-it-moves",
        "zfkernels/testing/spec.py",
        "result[name] = laid_out(value.to(device), layout)",
        "result[name] = laid_out(value, layout).to(device)",
        "tests/testing/test_search.py -k memory",
    ),
    # The command line
    Mutant(
        "errors-name-a-function-s-argument",
        "zfkernels/cli.py",
        "return text if option is None else option + text[len(name) :]",
        "return text",
        "tests/commands/test_mistakes.py -k found_before",
    ),
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
