"""Mutants of the command line, and of what is refused before any work."""

from mutant import Mutant

COMMANDS = [
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
    Mutant(
        "numbers-over-a-file-that-is-read",
        "zfkernels/commands/options.py",
        "if path.is_file() and (searched or any(same(path, read) for read in _paths(args))):",
        'if name == "out" and path.is_file() and any(same(path, read) for read in _paths(args)):',
        "tests/commands/test_mistakes.py -k replaces",
    ),
    Mutant(
        "numbers-over-the-figure",
        "zfkernels/commands/options.py",
        "return os.path.realpath(path) == os.path.realpath(other)",
        "return path == other",
        "tests/commands/test_mistakes.py -k replaces",
    ),
    Mutant(
        "pipes-are-waited-on",
        "zfkernels/files.py",
        "if there and not path.is_file() and not path.is_dir():",
        "if path.is_socket():",
        "tests/commands/test_mistakes.py -k pipe",
    ),
]
