"""What answers without torch, what `import zfkernels` adds to `import torch`, and shell completion.

Imports are looked at in a process of their own.
"""

import ast
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import zfkernels as zf
from zfkernels import cli
from zfkernels.analyses import neighbours, probes
from zfkernels.bench import peers
from zfkernels.commands import bench, gallery, probe, verify
from zfkernels.commands import neighbours as neighbours_command
from zfkernels.demo.gallery import SECTIONS
from zfkernels.testing.cases import OPS

HEAVY = {"torch", "numpy", "PIL", "matplotlib", "skimage", "sklearn", "tqdm", "triton", "jinja2"}
TOUCH = "import zfkernels as zf; [getattr(zf, name) for name in zf.__all__]"


@cache
def python(code: str) -> str:
    """What the code prints in a process of its own."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code: str, before: str = "pass") -> set[str]:
    """The modules that the code loads, after `before` has run."""
    lines = ["import sys", before, "old = set(sys.modules)", code, "print('LOADED', *set(sys.modules) - old)"]
    return set(python("\n".join(lines)).rpartition("LOADED")[2].split())


def called(*arguments: str) -> str:
    """Code that calls the command line, whatever it answers."""
    return f"""
from zfkernels import cli
try:
    cli.main({list(arguments)!r})
except SystemExit:
    pass"""


# Without torch


def test_the_package_alone_imports_no_torch():
    assert not loaded("import zfkernels, zfkernels.cli; dir(zfkernels), zfkernels.__version__") & HEAVY


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("proyect",), ("paint",), ("project", "--nrom", "x")]
)
def test_what_runs_no_command_imports_no_torch(arguments):
    modules = loaded(called(*arguments))
    assert "zfkernels.cli" in modules
    assert not modules & HEAVY


def test_no_commands_help_imports_torch():
    modules = loaded("".join(called(command, "--help") for command in cli.COMMANDS))
    assert {f"zfkernels.commands.{command}" for command in cli.COMMANDS} <= modules
    assert not modules & HEAVY


def test_the_choices_written_in_commands_are_the_real_ones():
    assert neighbours_command.METRICS == neighbours.METRICS
    assert probe.CLASSIFIERS == probes.CLASSIFIERS
    assert tuple(OPS) == verify.OPS
    assert bench.PEERS == peers.PEERS
    assert tuple(name for name, _ in SECTIONS) == gallery.SECTIONS


# Public names


def test_the_three_lists_of_public_names_agree():
    tree = ast.parse(Path(zf.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))  # for editors
    assert {alias.name: node.module for node in block.body for alias in node.names} == {"nn": None} | zf.MODULES
    assert zf.__all__ == sorted({"nn", *zf.MODULES})
    assert set(zf.__all__) <= set(dir(zf))


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'zfkernels' has no attribute 'conv3d'"):
        zf.conv3d  # noqa: B018


def test_every_way_to_a_public_name():
    printed = python("""
import pickle
import zfkernels
from zfkernels import ZFNet, nn
from zfkernels import *
model = pickle.loads(pickle.dumps(ZFNet(2, image_size=64, channels=(2,) * 5, fc=(3, 3))))
print(type(model) is zfkernels.ZFNet, zfkernels.nn is nn, type(model.conv1) is nn.ConvReLU, callable(contrast_norm))
""")
    assert printed.split() == ["True"] * 4


def test_after_torch_the_ops_are_registered_at_once():
    assert python("import torch, zfkernels; print(torch.ops.zfkernels.conv2d.default)") == "zfkernels.conv2d.default\n"


def test_a_public_name_may_be_used_first_inside_compiled_code():
    printed = python("""
import torch, zfkernels as zf
x, weight = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
compiled = torch.compile(lambda x: zf.conv2d_relu(x, weight), fullgraph=True, backend="eager")
print(torch.equal(compiled(x), zf.conv2d_relu(x, weight)))
""")
    assert printed == "True\n"


# What an import costs


def test_no_public_name_imports_the_compiler_or_a_drawing_library():
    modules = loaded(TOUCH, before="import torch")
    assert "zfkernels.analyses.sanity" in modules
    assert not modules & (
        HEAVY | {"torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "sympy"}
    )


def test_all_public_names_cost_at_most_half_of_torch():
    """0.1 s of CPU time beside torch's 1.1; with torch._dynamo it was 2."""
    seconds = python(f"""
from time import process_time
start = process_time()
import torch
between = process_time()
{TOUCH}
print(between - start, process_time() - between)
""")
    torchs, ours = map(float, seconds.split())
    assert ours <= max(0.3, 0.5 * torchs)


# Misspelt commands


@pytest.mark.parametrize(("word", "meant"), [("proyect", "project"), ("benhc", "bench"), ("neighbors", "neighbours")])
def test_a_misspelt_command_is_told_its_neighbour_in_one_line(capsys, word, meant):
    assert cli.main([word, "cat.jpg"]) == 2
    assert capsys.readouterr() == ("", f"zfkernels: error: invalid choice: {word!r}, did you mean {meant!r}?\n")


# Completion


LINES = [  # what is typed, the last word unfinished; what completes it, None: a file
    ("", [*cli.COMMANDS, "--help", "--version"]),
    ("pro", ["project", "probe"]),
    ("project --met", ["--method"]),
    ("project --norm ", ["identity", "gradient", "rescale"]),
    ("project --norm identity ", None),
    ("project cat.jpg --weights ", None),
    ("probe photos --classifiers svm so", ["softmax"]),
    ("gallery --only filters e", ["evolution"]),
    ("completion ", ["bash", "zsh", "fish"]),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(("line", "expected"), LINES)
def test_bash_completes(tmp_path, line, expected):
    """The script in bash itself, as if TAB had been pressed after `zfkernels LINE`; no Python can be started there."""
    answer = 'COMP_WORDS=(zfkernels "$@"); COMP_CWORD=$#; _zfkernels; printf "%s\\n" "${COMPREPLY[@]}"; complete -p'
    command = [shutil.which("bash"), "-c", python(called("completion", "bash")) + answer, "bash", *line.split(" ")]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.stderr == ""
    *words, registered = done.stdout.splitlines()
    assert registered == "complete -o default -F _zfkernels zfkernels"  # default: files, where there are no words
    assert [word for word in words if word] == (expected or [])


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("line", "expected"), [line for line in LINES[1:4] + LINES[-1:] if line[1]])
def test_fish_completes(line, expected):
    script = python(called("completion", "fish"))
    command = ["fish", "--no-config", "-c", f"{script}\ncomplete -C 'zfkernels {line}'"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    assert sorted(row.partition("\t")[0] for row in done.stdout.splitlines()) == sorted(expected)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_script():
    script = python(called("completion", "zsh"))
    command = ["zsh", "-f", "-c", f"{script}\nprint ${{_comps[zfkernels]}}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_bash_complete -o default -F _zfkernels" in done.stdout
