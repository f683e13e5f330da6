"""The templates: what is escaped, that each one renders, and that no markup is left in Python."""

import ast
import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pytest

import zfkernels

pytest.importorskip("jinja2")
Image = pytest.importorskip("PIL.Image")

from sample_pages import HOSTILE, PAGES, card, write_atlas, write_demo, write_evolution, write_gallery  # noqa: E402

from zfkernels.drawing.page import FIGURE, STYLE, data_uri, render  # noqa: E402
from zfkernels.drawing.style import NIGHT  # noqa: E402

PACKAGE = Path(zfkernels.__file__).parent
TEMPLATES = PACKAGE / "drawing" / "templates"
TAG = re.compile(
    r"</?(a|b|body|br|button|canvas|code|details|dialog|div|em|figcaption|figure|form|h[1-6]|head|header|hr|html|i"
    r"|iframe|img|input|label|li|link|main|meta|nav|ol|option|p|pre|script|section|select|small|span|strong|style|sub"
    r"|summary|sup|svg|table|tbody|td|th|thead|title|tr|ul|video)(?![\w-])|<!doctype",
    re.IGNORECASE,
)
SCRIPT = re.compile(r"\bdocument\.|\baddEventListener\b|\bfunction\s*\w*\(.*\)\s*\{|\bconst \w+\s*=|=>\s*\{")


class Read(HTMLParser):
    """A page as a browser's parser sees it: the elements' attributes, the text of each script, what stayed open."""

    VOID = frozenset(("meta", "img", "br", "link", "input", "hr", "source"))

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


def pictures(page):
    return [attributes for name, attributes in page.elements if name == "img"]


def test_a_hostile_name_stays_text_on_the_atlas_page(tmp_path):
    names = [HOSTILE, "b.png", "c.png", "d.png"]
    path = write_atlas(tmp_path, [(HOSTILE, 7)], maps=2, names=names)
    page = Read(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.count("b") == 3  # the head's, and a number a map
    assert page.count("button") == 2 + 3
    data, script = page.scripts
    assert not set(data) & set("<>&'")  # no browser ends or nests a script in it, whatever a picture is called
    assert script.strip() == (TEMPLATES / "script.js").read_text(encoding="utf-8").strip()
    (layer,) = json.loads(data)
    assert layer["name"] == HOSTILE
    assert [one["map"] for one in layer["cards"]] == [2, 3]
    assert layer["cards"][0]["units"][0] == f"4: {HOSTILE}, rows 0 to 6, columns 0 to 6"
    assert page.text.count(HOSTILE) == 4  # title, heading, link, the layer's heading
    assert ("a", {"href": f"#{quote(HOSTILE)}"}) in page.elements
    for picture in pictures(page)[:-1]:  # the last is the dialog's
        assert (tmp_path / unquote(picture["src"])).exists()
        assert picture["alt"].startswith(f"{HOSTILE} map ")


def test_a_hostile_name_stays_text_on_the_demo_page(tmp_path):
    named = {"facts": {"seed": HOSTILE}, "sources": [HOSTILE, "brick", "cat", HOSTILE]}
    path = write_demo(tmp_path, [HOSTILE.replace("/", ""), "brick"], **named)
    page = Read(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.scripts == []
    assert page.count("b") == 1
    assert ("td", {}) in page.elements
    assert HOSTILE in page.text
    shown = {"conv1_map003.png", "conv1_map004.png", "photographs.png", "training.png", "filters.png"}
    assert {picture["src"] for picture in pictures(page)} == shown
    assert all((tmp_path / name).exists() for name in shown)
    assert f"map 3: activations 1 to 4; full scale ±{card(3).limit:.2g};" in page.text


@pytest.mark.parametrize("kind", ["evolution", "gallery"])
def test_a_hostile_name_stays_text_on_the_other_pages(tmp_path, kind):
    path = write_evolution(tmp_path, HOSTILE, [HOSTILE] * 4) if kind == "evolution" else write_gallery(tmp_path)
    page = Read(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.scripts == []
    assert HOSTILE in page.text


def test_a_layer_without_cards_has_a_heading_and_no_sheet(tmp_path):
    page = Read(write_atlas(tmp_path, [("conv1", 7)], maps=0).read_text(encoding="utf-8"))
    assert page.open == []
    assert page.count("li") == 0
    assert json.loads(page.scripts[0]) == [{"name": "conv1", "sheets": [], "cards": []}]
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


@pytest.mark.parametrize("kind", PAGES)
def test_every_page_has_the_explorers_look(tmp_path, kind):
    """One stylesheet, light and dark, the phone's width, and nothing that is fetched from elsewhere."""
    style = STYLE.read_text(encoding="utf-8").strip()
    assert "@media (prefers-color-scheme: dark)" in style
    assert ":focus-visible" in style
    text = PAGES[kind](tmp_path).read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count(style) == 1
    assert text.count("<style>") == 1
    assert not re.search(r"https?://|@import|url\(|<link", text)
    page = Read(text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    assert ("html", {"lang": "en"}) in page.elements
    assert page.count("main") == page.count("h1") == 1
    anchors = {attributes.get("id") for _, attributes in page.elements}
    links = [attributes["href"][1:] for name, attributes in page.elements if name == "a"]
    assert len(links) > 1
    assert {unquote(link) for link in links} <= anchors


def test_the_explorer_serves_and_exports_the_same_stylesheet():
    pytest.importorskip("starlette")
    from zfkernels.explorer.server import PAGE, shell

    assert not (PAGE / "style.css").exists()
    assert shell(None).index('href="style.css"') < shell(None).index('href="explorer.css"')
    assert "prefers-color-scheme" not in (PAGE / "explorer.css").read_text(encoding="utf-8")  # its colours are style's


def test_the_colours_of_dark_figures_are_the_dark_pages():
    dark_part = STYLE.read_text(encoding="utf-8").partition("prefers-color-scheme: dark")[2]
    for name, colour in (("pane", NIGHT.paper), ("ink", NIGHT.ink), ("soft", NIGHT.soft), ("accent", NIGHT.accent)):
        assert f"--{name}: {colour}" in dark_part


@pytest.mark.parametrize("kind", PAGES)
def test_pictures_are_lazy_keep_their_place_and_say_what_is_seen(tmp_path, kind):
    shown = pictures(Read(PAGES[kind](tmp_path).read_text(encoding="utf-8")))
    shown = [picture for picture in shown if picture["src"] != "data:,"]  # of the dialog that nobody has opened
    assert len(shown) > 4
    for picture in shown:
        assert picture["loading"] == "lazy"
        if picture["src"].startswith("data:"):
            file = io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))
        else:
            file = tmp_path / unquote(picture["src"])
        with Image.open(file) as opened:
            size, shown_size = opened.size, (int(picture["width"]), int(picture["height"]))
            assert shown_size in (size, tuple(round(side / FIGURE) for side in size))
        assert len(picture["alt"]) > 20
    said = {picture["alt"] for picture in shown}
    assert len(said) == len(shown)
    if kind in ("atlas", "demo", "evolution"):
        maps = [alt for alt in said if " map " in alt]
        assert maps
        for alt in maps:  # layer, map, method, value, class
            assert re.match(r"conv\d map \d+( at epoch \d)?, (deconvnet|guided): ", alt)
            assert re.search(r"\d+ to \d+|, \d,", alt)
            assert re.search("cat|brick|cup", alt)


def test_an_alt_text_names_what_a_map_prefers(tmp_path):
    write_atlas(tmp_path, [("conv1", 7)], maps=1)
    (layer,) = json.loads(Read((tmp_path / "index.html").read_text()).scripts[0])
    assert layer["cards"][0]["alt"] == (
        "conv1 map 2, guided: projections of its 4 strongest activations, 4 to 1, beside the patches that caused them; "
        "3 of 4 from cat"
    )


def test_every_template_is_a_page_of_the_package_or_part_of_one():
    files = {path.name for path in TEMPLATES.iterdir()}
    whole = {"base.html", "atlas.html", "demo.html", "evolution.html", "gallery.html", "shown.html"}
    assert files == whole | {"picture.html", "style.css", "script.js"}
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
