"""The templates: what is escaped, that each one renders, and that no markup is left in Python."""

import ast
import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import zfkernels
from zfkernels.analyses import atlas
from zfkernels.demo import page as demo_page
from zfkernels.training.history import Epoch

pytest.importorskip("jinja2")
Image = pytest.importorskip("PIL.Image")

from zfkernels.drawing.page import data_uri, render  # noqa: E402

PACKAGE = Path(zfkernels.__file__).parent
TEMPLATES = PACKAGE / "drawing" / "templates"
HOSTILE = """x<!--<script>"'&</script><b>.png"""
TAG = re.compile(
    r"</?(a|b|body|br|button|canvas|code|details|dialog|div|em|figcaption|figure|form|h[1-6]|head|header|hr|html|i"
    r"|iframe|img|input|label|li|link|main|meta|nav|ol|option|p|pre|script|section|select|small|span|strong|style|sub"
    r"|summary|sup|svg|table|tbody|td|th|thead|title|tr|ul|video)(?![\w-])|<!doctype",
    re.IGNORECASE,
)
SCRIPT = re.compile(r"\bdocument\.|\baddEventListener\b|\bfunction\s*\w*\(.*\)\s*\{|\bconst \w+\s*=|=>\s*\{")


class Read(HTMLParser):
    """A page as a browser's parser sees it: the elements' attributes, the text of each script, what stayed open."""

    VOID = frozenset(("meta", "img", "br", "link", "input", "hr"))

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def card(channel=3, k=4, side=7):
    generator = torch.Generator().manual_seed(channel)
    corners = torch.tensor([[0, 0], [5, 2], [30, 30], [33, 1]])[:k]
    return atlas.Card(
        channel=channel,
        values=torch.tensor([4.0, 3.0, 2.0, 1.0])[:k],
        numbers=torch.arange(k),
        images=torch.randint(0, 256, (k, 3, 40, 40), generator=generator).to(torch.uint8),
        pixels=torch.randn(k, 3, 40, 40, generator=generator),
        boxes=torch.cat([corners, corners + side], 1),
        side=side,
    )


def findings(classes):
    layer = demo_page.LayerTop("conv1", maps=5, live=2, receptive_field=7, stride=2, tops=[card(3), card(4)])
    blank = np.zeros((20, 30, 3), np.uint8)
    return demo_page.Findings(
        classes=classes,
        photographs=[demo_page.Photograph(name, blank, [(0, 0, 5, 5)], 0.5) for name in classes],
        history=[Epoch(1, 1.0, 0.5, 0.25, 0.0, 0.01, 100.0, 1.0, 1)],
        filters=torch.randn(5, 3, 7, 7),
        layers=[layer],
        occluded=[],
        facts={"seed": HOSTILE},
        sources=[HOSTILE, *classes, HOSTILE],
    )


def atlas_page(folder, cards=None):
    layer = atlas.LayerCards(HOSTILE, 5, iter([card(3), card(4)] if cards is None else cards))
    sheet = atlas.write_layer(folder, layer, [HOSTILE, "b.png", "c.png", "d.png"])
    atlas.write_page(folder / "index.html", HOSTILE, 4, [sheet])
    return (folder / "index.html").read_text(encoding="utf-8")


def test_a_hostile_name_stays_text_on_the_atlas_page(tmp_path):
    page = Read(atlas_page(tmp_path))
    assert page.open == []
    assert page.count("b") == 0
    assert page.count("button") == 2
    data, script = page.scripts
    assert not set(data) & set("<>&'")  # no browser ends or nests a script in it, whatever a picture is called
    assert script.strip() == (TEMPLATES / "script.js").read_text(encoding="utf-8").strip()
    (layer,) = json.loads(data)
    assert layer["name"] == HOSTILE
    assert [one["map"] for one in layer["cards"]] == [3, 4]
    assert layer["cards"][0]["units"][0] == f"4: {HOSTILE}, rows 0 to 6, columns 0 to 6"
    assert page.text.count(HOSTILE) == 4  # title, heading, link, the layer's heading
    assert ("a", {"href": f"#{HOSTILE}"}) in page.elements


def test_a_hostile_name_stays_text_on_the_demo_page(tmp_path):
    path = demo_page.write_page(tmp_path, findings([HOSTILE.replace("/", ""), "brick"]))
    page = Read(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.scripts == []
    assert page.count("b") == 0
    assert ("td", {}) in page.elements
    assert HOSTILE in page.text
    pictures = [attributes["src"] for name, attributes in page.elements if name == "img"]
    assert {"conv1_map003.png", "conv1_map004.png", "photographs.png", "training.png", "filters.png"} == set(pictures)
    assert all((tmp_path / name).exists() for name in pictures)
    assert f"map 3: activations 1 to 4; full scale ±{card(3).limit:.2g};" in page.text


def test_a_layer_without_cards_has_a_heading_and_no_sheet(tmp_path):
    page = Read(atlas_page(tmp_path, cards=[]))
    assert page.open == []
    assert page.count("button") == 0
    assert json.loads(page.scripts[0]) == [{"name": HOSTILE, "cards": []}]
    assert not list(tmp_path.glob("*.png"))


def test_both_pages_have_the_one_layout_and_style(tmp_path):
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8").strip()
    (tmp_path / "atlas").mkdir()
    for text in (
        atlas_page(tmp_path / "atlas"),
        demo_page.write_page(tmp_path, findings(["brick", "cat"])).read_text(),
    ):
        assert text.startswith("<!doctype html>")
        assert text.count(style) == 1
        assert not re.search(r"https?://|@import|url\(|<link", text)  # nothing is fetched


def test_every_template_is_a_page_of_the_package_or_part_of_one():
    files = {path.name for path in TEMPLATES.iterdir()}
    assert files == {"base.html", "atlas.html", "demo.html", "shown.html", "style.css", "script.js"}
    assert Read(render("base.html")).open == []


def test_a_name_that_a_template_lacks_is_an_error():
    with pytest.raises(Exception, match="'findings' is undefined"):
        render("demo.html")


def test_a_data_uri_is_the_picture():
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    head, _, body = data_uri(pixels, "png", optimize=True).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))), pixels)


def strings(path):
    """The string constants of a Python file, f-strings' parts included, but not its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loose:
            yield node.lineno, node.value


def test_no_python_string_holds_markup_or_a_script(tmp_path):
    marked = [
        f"{path.relative_to(PACKAGE)}:{line}: {text[:60]!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in strings(path)
        if TAG.search(text) or SCRIPT.search(text)
    ]
    assert marked == []
    bad = tmp_path / "bad.py"  # what the search must find
    bad.write_text("""a = f'<p class="soft">{1}</p>'\nb = "view.onclick=e=>{x}"\nc = "<img"\nd = f"<a href={1}>"\n""")
    assert {line for line, text in strings(bad) if TAG.search(text) or SCRIPT.search(text)} == {1, 2, 3, 4}
