"""Atlas, demo, gallery and evolution in chromium: desktop and phone, light and dark, by the keyboard alone."""

import io
import json
from contextlib import contextmanager

import numpy as np
import pytest
from browsing import CHROMIUM, SIZES, launched, serious, shot

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("jinja2")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

from PIL import Image  # noqa: E402
from sample_pages import PAGES, write_atlas  # noqa: E402


@pytest.fixture(scope="module")
def chromium():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each page's file."""
    return {kind: write(tmp_path_factory.mktemp(kind)) for kind, write in PAGES.items()}


@contextmanager
def opened(chromium, url, size="desktop", scheme="light"):
    """A page that must say nothing on its console, miss no file and ask for nothing of elsewhere."""
    context = chromium.new_context(viewport=SIZES[size], color_scheme=scheme)
    page, said = context.new_page(), []
    page.set_default_timeout(30_000)
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or said.append(f"asked: {r.url}"))
    page.goto(url)
    yield page
    context.close()
    assert said == []


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_fits_and_reads_on_every_screen(chromium, written, kind):
    colours = set()
    for size, scheme in (("desktop", "light"), ("phone", "dark")):
        with opened(chromium, written[kind].as_uri(), size, scheme) as page:
            shot(page, f"{kind}-{size}-{scheme}", whole=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
            assert serious(page) == [], (size, scheme)
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2


@pytest.mark.parametrize("size", SIZES)
def test_the_header_of_many_parts_leaves_room_for_the_page(chromium, tmp_path, size):
    """And a link in it leads to its heading, which it does not cover."""
    path = write_atlas(tmp_path, [(f"features.{i}.block.0.0", 7) for i in range(52)], maps=1)
    with opened(chromium, path.as_uri(), size) as page:
        height = page.locator("header").bounding_box()["height"]
        assert height < 0.12 * SIZES[size]["height"]
        for name in ("features.1.block.0.0", "features.40.block.0.0"):
            page.locator(f"header a:text-is('{name}')").focus()
            page.keyboard.press("Enter")
            page.wait_for_timeout(100)
            heading = page.locator(f"h2:has-text('{name}')").bounding_box()
            assert height <= heading["y"] < SIZES[size]["height"]
        assert serious(page) == []


@pytest.mark.parametrize("kind", ["demo", "gallery"])
def test_a_dark_page_shows_dark_figures(chromium, written, kind):
    for scheme in ("light", "dark"):
        with opened(chromium, written[kind].as_uri(), scheme=scheme) as page:
            page.wait_for_load_state("networkidle")
            sources = page.locator("picture img").evaluate_all("all => all.map(one => one.currentSrc)")
            shown = [source for source in sources if source]  # what has been near
            assert shown
            assert {source.rpartition(".")[0].endswith("-dark") for source in shown} == {scheme == "dark"}


def test_an_atlas_is_read_by_the_keyboard_alone(chromium, written):
    """A map opens at full size, the arrows turn the page, Escape gives the focus back to the map that was left."""
    with opened(chromium, written["atlas"].as_uri()) as page:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.dataset.layer === '1'"):
                break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert page.inner_text("#map-title") == "conv5, map 2"
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#map-title") == "conv5, map 3"
        page.wait_for_function("document.querySelector('dialog img').complete")
        picture = page.locator("dialog .piece img")
        assert picture.evaluate("one => one.naturalWidth") == 2 * (2 * 80 + 2) + 6
        assert picture.get_attribute("alt").startswith("conv5 map 3, guided")
        assert page.locator("dialog li").count() == 4
        assert page.url.endswith("#conv5/3")
        shot(page, "atlas-opened")
        assert serious(page) == []
        page.keyboard.press("Escape")
        assert not page.locator("dialog").evaluate("one => one.open")
        assert page.evaluate("document.activeElement.dataset.card") == "1"
    with opened(chromium, written["atlas"].as_uri() + "#conv1/4", "phone") as page:
        assert page.inner_text("#map-title") == "conv1, map 4"
        assert page.locator("button[data-step='1']").is_disabled()
        shot(page, "atlas-opened-phone")
        assert serious(page) == []
        page.click("button[data-step='0']")
        assert page.evaluate("document.activeElement.dataset.card") == "2"


def test_a_card_shows_its_own_part_of_the_sheet(chromium, tmp_path):
    """Against the sheet as it is on the disk."""
    path = write_atlas(tmp_path, [("conv1", 8)], maps=20)
    with opened(chromium, path.as_uri()) as page:
        (layer,) = json.loads(page.inner_text("#data"))
        card = layer["cards"][17]
        piece = page.locator("button[data-card='17'] .piece")
        piece.scroll_into_view_if_needed()
        page.wait_for_load_state("networkidle")
        seen = np.asarray(
            Image.open(io.BytesIO(piece.screenshot())).convert("RGB").resize((40, 20), Image.Resampling.BOX)
        )
    with Image.open(tmp_path / "conv1" / "sheet-1.png") as sheet:
        place = card["x"], card["y"], card["x"] + card["w"], card["y"] + card["h"]
        drawn = np.asarray(sheet.crop(place).resize((40, 20), Image.Resampling.BOX))
        other = np.asarray(sheet.crop((place[0] - 40, *place[1:])).resize((40, 20), Image.Resampling.BOX))
    assert np.abs(seen.astype(int) - drawn).mean() < 12 < np.abs(other.astype(int) - drawn).mean()


def test_what_is_far_below_is_loaded_when_it_is_near(chromium, tmp_path):
    path = write_atlas(tmp_path, [(f"conv{i}", 7) for i in range(40)], maps=9)
    asked = []
    context = chromium.new_context(viewport=SIZES["desktop"])
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    assert any("/conv0/" in url for url in asked)
    assert not any("/conv39/" in url for url in asked)
    page.locator("#conv39").scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('section:last-of-type img')].every(one => one.complete)")
    assert any("/conv39/" in url for url in asked)
    context.close()
