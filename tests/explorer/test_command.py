"""`zfkernels explore` as a process: its address, how it ends, its mistakes, and what --export writes."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from asked import LAYERS, command, environment, make_world, searched

from zfkernels import cli
from zfkernels.commands import explore
from zfkernels.explorer import export as of_export


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("explored"))


def started(world, *options):
    arguments = [world / "photos", "--weights", world / "zfnet.pt", "--port", 0, "--no-browser", "--quiet", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command(*arguments), env=environment(), **pipes)
    lines = []
    for line in iter(server.stdout.readline, ""):
        lines.append(line)
        if re.fullmatch(r"http://[\d.]+:\d+/\n", line):
            return server, line.strip()
    pytest.fail(f"no address: {lines} {server.stderr.read()}")


def test_the_address_stands_alone_answers_and_ctrl_c_ends_with_130(world):
    server, address = started(world)
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address + "data/network.json", timeout=60) as answer:
        assert json.load(answer)["pictures"] == 18
    watching = urllib.request.urlopen(address + "live/search", timeout=60)  # a page is open
    other = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(other, timeout=60)
    server.send_signal(signal.SIGINT)
    _, errors = server.communicate(timeout=60)
    watching.close()
    assert (server.returncode, errors) == (130, "zfkernels explore: stopped\n")


def test_another_address_is_served_after_a_warning(world):
    server, address = started(world, "--host", "0.0.0.0")
    server.send_signal(signal.SIGINT)
    _, errors = server.communicate(timeout=60)
    assert address.startswith("http://0.0.0.0:")
    assert "zfkernels: warning: --host 0.0.0.0: whoever reaches this machine sees these pictures" in errors


def call(capsys, *arguments):
    code = cli.main(["explore", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_mistakes_are_one_line_before_any_work(capsys, world, tmp_path):
    weights = ["--weights", world / "zfnet.pt", "--no-browser"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, errors = call(capsys, world / "photos", *weights, "--port", port)
        assert code == 2
        assert errors.startswith(f"zfkernels explore: error: --host 127.0.0.1 --port {port} cannot be served (Address")
    (tmp_path / "mine.txt").write_text("mine")
    for options, words in (
        (["--port", 70000], "--port must be at most 65535, got 70000"),
        (["--layers", "conv9"], "--layers must be of conv1"),
        (["--checkpoints", tmp_path / "none.pt"], "there is no weights file"),
        (["--export", tmp_path], "--export must be a new folder, or one of an earlier export"),
        (["--export", tmp_path / "mine.txt"], "--export must be a folder"),
        (["--maps", 0], "--maps must be at least 1, got 0"),
    ):
        code, _, errors = call(capsys, world / "photos", *weights, *options)
        assert (code, errors.count("\n")) == (2, 1), errors
        assert words in errors
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_without_its_extra_it_says_what_to_install(capsys, monkeypatch, world):
    monkeypatch.setitem(sys.modules, "starlette", None)
    code, _, errors = call(capsys, world / "photos", "--weights", world / "zfnet.pt")
    assert code == 2
    assert "pip install 'zfkernels[explore]'" in errors


# The export


def test_an_export_holds_the_strongest_maps_of_each_layer_and_what_they_need(world, tmp_path):
    it = searched(world)
    it.worker.stop()
    size = of_export.export(it.state, tmp_path / "site", 'zfkernels explore <b>&"', maps=2)
    files = {
        str(path.relative_to(tmp_path / "site")): path for path in (tmp_path / "site").rglob("*") if path.is_file()
    }
    assert sum(path.stat().st_size for path in files.values()) == size
    for number, name in enumerate(LAYERS):
        chosen = of_export.strongest(it.state, it.state.layers[number], 2)
        top = it.state.tops[name].values[:, 0]
        assert chosen == top.argsort(descending=True, stable=True).tolist()[:2]
        for channel in chosen:
            words = given(files[f"data/unit/{number}/{channel}.js"])
            assert {f"data/picture/{pair['picture']}.webp" for pair in words["pairs"]} <= files.keys()
            for view in ("patches", "deconvnet", "guided", "gradient"):
                assert f"data/unit/{number}/{channel}/{view}.webp" in files
        assert set(given(files[f"data/layer/{number}.js"])["sprites"]) == set(map(str, chosen))
    page = files["index.html"].read_text()
    assert 'data-command="zfkernels explore &lt;b&gt;&amp;&#34;"' in page
    assert "module" not in page
    of_export.export(it.state, tmp_path / "site", "again", maps=1)  # over an earlier one


def given(path):
    return json.loads(re.fullmatch(r"zfkernels\.give\(\"[\w/]+\", (.*)\);\n", path.read_text())[1])


def test_the_modules_as_one_script_share_no_name_and_none_is_left_out():
    names = []
    for name in of_export.MODULES:
        text = (of_export.PAGE / f"{name}.js").read_text()
        names += re.findall(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", text, re.MULTILINE)
        for imported in re.findall(r"^import .* from \"\./(\w+)\.js\";$", text, re.MULTILINE):
            assert of_export.MODULES.index(imported) < of_export.MODULES.index(name)
    assert len(names) == len(set(names)) > 50
    assert {path.stem for path in of_export.PAGE.glob("*.js")} == set(of_export.MODULES)
    assert not re.search(r"^(import|export) ", of_export.bundle(), re.MULTILINE)


def test_the_page_asks_nothing_of_elsewhere():
    for path in of_export.PAGE.iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|innerHTML|eval\(", path.read_text()), (
            path.name
        )


def test_the_command_that_serves_the_same_is_one_that_a_shell_takes():
    typed = [
        "explore",
        "my photos; ls",
        "--model",
        "a:b",
        "--size",
        "48",
        "--checkpoints",
        "1.pt",
        "2.pt",
        "--mean",
        "0.5",
    ]
    args = cli.parser("explore").parse_args([*typed, "--export", "site"])
    words = shlex.split(explore._command(args))
    assert words[:3] == ["zfkernels", "explore", "my photos; ls"]
    again = cli.parser("explore").parse_args(words[1:])
    given = vars(args) | {"export": None}
    assert vars(again) == given
