"""What the pages say can be done can be done: code blocks run, commands parse, links lead somewhere."""

import contextlib
import importlib.util
import re
import shlex
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

import zfkernels as zf
from zfkernels import cli

ROOT = Path(__file__).resolve().parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md")
PAGES = [ROOT / name for name in TOP]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# A fenced block, what stands in the line before it, and its language
BLOCK = re.compile(r"(?:^<!-- needs: (?P<needs>[\w ]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```", re.M | re.S)


def blocks(page: Path, languages: tuple[str, ...]) -> list[tuple[int, str, list[str]]]:
    """(line number, code, modules it needs) of each fenced block in one of these languages."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start("code")), found["code"], (found["needs"] or "").split())
        for found in BLOCK.finditer(text)
        if found["language"] in languages
    ]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def compiled():
    """torch.compile knows the backend by name, as an installed package makes it."""
    if "zfkernels" not in torch._dynamo.list_backends(exclude_tags=()):
        from zfkernels.compiler import backend

        torch._dynamo.register_backend(backend, name="zfkernels")
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, ("python",))], ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch, compiled):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    skipped = []
    for line, code, needs in blocks(page, ("python",)):
        if missing := [module for module in needs if importlib.util.find_spec(module) is None]:
            skipped += missing
            continue
        exec(compile("\n" * line + code, str(page), "exec"), names)  # a failure names the page and its line
    if skipped:
        pytest.skip(f"blocks that need {', '.join(skipped)} were left out")


def test_no_python_block_hides_under_another_name():
    assert [(name(page), line) for page in PAGES for line, *_ in blocks(page, ("py", "python3", "Python"))] == []


def commands(page: Path) -> list[tuple[int, list[str]]]:
    """The lines of a page's blocks that call zfkernels, as arguments."""
    found = []
    for first, code, _ in blocks(page, ("", "bash", "sh", "console")):
        for number, line in enumerate(code.replace("\\\n", " ").splitlines(), first + 1):
            with contextlib.suppress(ValueError):  # output, not a command
                words = shlex.split(line, comments=True)
                if words[:1] == ["torchrun"] and "zfkernels" in words:
                    words = words[words.index("zfkernels") :]
                if words[:1] == ["zfkernels"] and len(words) > 1:
                    found.append((number, words[1:]))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_parse(page, capsys):
    for number, words in commands(page):
        try:
            cli.parser().parse_args(words)
        except SystemExit as error:
            if error.code:
                pytest.fail(f"{name(page)}:{number}: {' '.join(words)}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_scripts_that_are_named_exist():
    for page in PAGES:
        for _, code, _ in blocks(page, ("", "bash", "sh")):
            for script in re.findall(r"^python ((?:benchmarks|tests|docs)/[\w/]+\.py)", code, re.M):
                assert (ROOT / script).exists(), (name(page), script)


def test_every_public_name_is_in_the_reference():
    listed = set(re.findall(r"^::: zfkernels\.[\w.]*?(\w+)$", (ROOT / "docs/api.md").read_text(), re.M))
    assert set(zf.__all__) - listed == set()
    ops = {one for one in zf.__all__ if one.endswith("2d") or "2d_" in one or one == "contrast_norm"}
    assert {one for one in ops if not (ROOT / "docs/ops" / f"{one}.md").exists()} == set()


def test_every_variable_is_explained():
    sources = [*(ROOT / "zfkernels").rglob("*.py"), *(ROOT / "csrc").rglob("*.[ch]*"), ROOT / "setup.py"]
    used = {found for file in sources for found in re.findall(r"ZFKERNELS_[A-Z_]+", file.read_text())}
    text = (ROOT / "docs/environment.md").read_text()
    assert used
    assert {variable for variable in used if f"`{variable}`" not in text} == set()


def test_every_command_is_explained():
    text = (ROOT / "docs/commands.md").read_text()
    assert [command for command in cli.COMMANDS if f"`{command}`" not in text] == []


def test_the_version_is_the_same_everywhere():
    assert f"\nversion: {zf.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {zf.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_hooks_run_the_pinned_versions():
    hooks = re.findall(r"\[((?:ruff|clang-format)==[\d.]+)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(hooks) == 3
    assert set(hooks) - set((ROOT / "constraints.txt").read_text().split()) == set()


def test_wheels_are_built_where_torch_can_be_installed():
    """In the image that torch's own wheel names, for the two architectures; each kind of runner is there."""
    tags = re.findall(r"^Tag: .*(manylinux_\d+_\d+)_", distribution("torch").read_text("WHEEL") or "", re.M)
    images = re.findall(r'^linux\.manylinux-(\w+)-image = "(\w+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert [architecture for architecture, _ in images] == ["x86_64", "aarch64"]
    assert {image for _, image in images} <= set(tags or {image for _, image in images})
    runners = re.search(r"runner: \[(.*?)\]", (ROOT / ".github/workflows/wheels.yml").read_text())
    assert runners[1].split(", ") == ["ubuntu-latest", "ubuntu-24.04-arm", "macos-14"]
