"""The explorer in chromium: live and exported, desktop and phone, light and dark, by mouse and by keyboard alone.

ZFKERNELS_SCREENSHOTS names a folder for pictures of what was seen; ZFKERNELS_CHROMIUM another browser than Debian's.
"""

import io
import signal
import subprocess
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from asked import CLASSES, command, environment, explorer, make_world
from browsing import CHROMIUM, SIZES, launched, serious, shot
from PIL import Image

from zfkernels import cli
from zfkernels.explorer import server

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
WAIT = 20_000  # ms
FLAGS = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # a camera's picture


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def address(world):
    """Of a server of this module's own, with two epochs."""
    epochs = [world / "epoch_001.pt", world / "epoch_010.pt"]
    options = ["--weights", world / "zfnet.pt", "--port", 0, "--no-browser", "--quiet", "--checkpoints", *epochs]
    with subprocess.Popen(
        command(world / "photos", *options), stdout=subprocess.PIPE, text=True, env=environment()
    ) as server:
        lines = iter(server.stdout.readline, "")
        yield next(line.strip() for line in lines if line.startswith("http://"))
        server.send_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def exported(world):
    site = world / "site"
    arguments = ["explore", world / "photos", "--weights", world / "zfnet.pt", "--export", site, "--quiet"]
    assert cli.main([*map(str, arguments)]) == 0
    return site


@pytest.fixture(scope="module")
def chromium():
    with launched(*FLAGS) as browser:
        yield browser


@contextmanager
def opened(chromium, url, size="desktop", scheme="light", refused=0, is_searched=True):
    """A page that must say nothing on its console, ask nothing of elsewhere and open no dialog.

    `refused`: how many uploads the server refuses, of which chromium says a line each.
    """
    context = chromium.new_context(viewport=SIZES[size], color_scheme=scheme)
    page, said, asked = context.new_page(), [], []
    page.set_default_timeout(WAIT)
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    if is_searched:
        page.wait_for_selector(".tiles .tile[data-map]")
        until(page, f"{str(url.startswith('file')).lower()} || document.getElementById('steer').hidden")
        page.wait_for_selector(".tiles .tile[data-map]")
    yield page
    page.wait_for_load_state("networkidle")
    context.close()
    assert [line for line in said if "415 (Unsupported Media Type)" not in line] == []
    assert len(said) == refused
    own = ("data:", "blob:", url.partition("#")[0].rpartition("/")[0])
    assert [one for one in asked if not one.startswith(own)] == []


def until(page, expression):
    """Waits; playwright's own way to evaluates in the page, which its policy forbids."""
    until_true(page, lambda: page.evaluate(expression), expression)


def until_true(page, condition, text="a request"):
    for _ in range(WAIT // 50):
        if condition():
            return
        page.wait_for_timeout(50)
    pytest.fail(f"not within {WAIT} ms: {text}")


def open_unit(page, layer="conv3"):
    """The strongest unit of a layer, by clicks."""
    page.click(f"#layers a[href='#{layer}']")
    page.wait_for_selector(f"#layers a[href='#{layer}'][aria-current]")
    page.click(".tiles li:first-child a")
    page.wait_for_selector(".pairs")


WALKS = (("live", "desktop", "light"), ("live", "phone", "dark"))
WALKS += (("exported", "desktop", "dark"), ("exported", "phone", "light"))


@pytest.mark.parametrize(("kind", "size", "scheme"), WALKS)
def test_the_walk_through_layers_wall_and_unit(chromium, address, exported, kind, size, scheme):
    url = address if kind == "live" else (exported / "index.html").as_uri()
    with opened(chromium, url, size, scheme) as page:
        name = f"{kind}-{size}-{scheme}"
        assert page.locator("#layers li").count() == 6
        shot(page, f"{name}-wall")
        assert serious(page) == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(251, 250, 248)"
        assert dark == (scheme == "dark")
        open_unit(page)
        assert page.locator(".pairs tbody tr").count() == 9
        assert page.url.partition("#conv3/")[2].isdecimal()
        shot(page, f"{name}-unit")
        assert serious(page) == []
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= SIZES[size]["width"]
        page.click("#close")
        until(page, "document.body.dataset.open === 'nothing'")
        page.click("#to-picture")
        page.wait_for_selector(".stage img" if kind == "live" else "#side .grey code")
        shot(page, f"{name}-picture")
        assert serious(page) == []


def test_the_exported_page_says_which_command_gives_what_it_lacks(chromium, exported, world):
    with opened(chromium, (exported / "index.html").as_uri()) as page:
        open_unit(page)
        grey = page.locator("#side .grey")
        assert grey.count() == 3
        for text in grey.all_inner_texts():
            assert f"zfkernels explore {world / 'photos'} --weights {world / 'zfnet.pt'}" in text
        shell = ("index.html", "style.css", "explorer.css", "explorer.js", "data/network.js", "data/layer/0.js")
        assert sum((exported / name).stat().st_size for name in shell) < 200_000


def pixels(page, selector):
    """What is drawn where the element is."""
    page.wait_for_load_state("networkidle")
    drawn = page.locator(selector).first.screenshot()
    return np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", ["live", "exported"])
def test_the_pictures_are_drawn(chromium, address, exported, kind):
    """Tiles, patches and projections show more than their background."""
    with opened(chromium, address if kind == "live" else (exported / "index.html").as_uri()) as page:
        assert pixels(page, ".tiles .tile[data-map]").std() > 10
        open_unit(page)
        assert pixels(page, ".pairs button.view").std() > 10
        assert pixels(page, ".pairs div.view").std() > 3


def test_what_nobody_asked_for_waits_until_the_wall_is_drawn(chromium, address):
    """The picture beside it is of nobody's choice: its units would take the time of what is clicked."""
    held, asked = [], []
    with opened(chromium, address) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.route("**/data/tile/**", lambda tile: held.append(tile))
        page.reload()
        until_true(page, lambda: held)
        page.wait_for_timeout(1000)
        assert not any("live/seen" in url for url in asked)
        for tile in held:
            tile.continue_()
        page.unroute("**/data/tile/**")
        page.wait_for_selector("#found .seen a, #found p")
        assert any("live/seen" in url for url in asked)


@pytest.mark.parametrize("size", SIZES)
def test_a_layers_long_name_stays_in_its_place(chromium, address, size):
    """And a small number is short."""
    long = "features.11.block.2.fc1_of_a_network_whose_names_have_no_end"
    with opened(chromium, address, size) as page:
        name = page.locator("#layers li:nth-child(2) strong")
        name.evaluate("(element, text) => (element.textContent = text)", long)
        inside, around = (page.locator(f"#layers li:nth-child(2) {part}").bounding_box() for part in ("strong", "a"))
        assert inside["x"] + inside["width"] <= around["x"] + around["width"]
        assert name.evaluate("element => element.scrollWidth <= element.clientWidth + 1")
        numbers = page.evaluate(
            "import('/dom.js').then(({ number }) => [0, 1234.5, -0.25, 0.00000311234, -2e-5].map(number))"
        )
        assert numbers == ["0", "1230", "-0.25", "3.11e-6", "-2.00e-5"]


def test_a_wall_is_drawn_after_a_unit_was_left_before_its_pictures_came(chromium, address):
    held = []
    with opened(chromium, f"{address}#conv3") as page:
        page.route("**/data/unit/**/*.webp*", lambda strip: held.append(strip))
        page.click(".tiles li:first-child a")
        until_true(page, lambda: held)
        page.keyboard.press("Escape")
        until(page, "document.body.dataset.open === 'nothing'")
        page.click("#layers a[href='#conv1']")
        page.wait_for_selector(".tiles .tile[style*='tile/0/']")


def test_hostile_names_are_shown_as_text(chromium, address):
    with opened(chromium, address) as page:
        assert page.evaluate("document.scripts.length") == 1
        options = page.locator("#classes option").evaluate_all("all => all.map(one => one.value)")
        assert sorted(options) == sorted(CLASSES)
        names = ""
        for _ in range(3):
            page.click(".tiles li:first-child a") if not names else page.click("#side a[rel=next]")
            page.wait_for_selector(".pairs")
            page.hover(".pairs tbody tr:nth-child(1) button.view")
            names += page.inner_text("#whole figcaption") + page.inner_text("#side")
        assert "<script>alert(1)<" in names


@pytest.mark.parametrize("over", ["button.view", "td:nth-child(3) .view"])  # a picture, and a projection in it
def test_a_hover_shows_the_whole_picture_with_what_the_unit_sees(chromium, address, over):
    with opened(chromium, f"{address}#conv1/0") as page:
        page.wait_for_selector(".pairs, #side p")
        open_unit(page, "conv1")
        page.hover(f".pairs tbody tr:nth-child(2) {over}")
        until(page, "document.querySelector('#whole img').complete")
        whole, frame = (page.locator(f"#whole {part}").bounding_box() for part in ("img", ".frame"))
        assert frame["width"] / whole["width"] == pytest.approx(7 / 48, rel=0.15)
        page.mouse.move(5, 5)
        assert page.locator("#whole").is_hidden()


def test_maps_that_are_classes_and_pictures_have_names(chromium, address):
    with opened(chromium, f"{address}#fc8") as page:
        page.select_option("#order", "number")
        said = [text.partition(" ")[2] for text in page.locator(".tiles b").all_inner_texts()]
        assert said == CLASSES
        page.fill("#find", CLASSES[2])
        assert page.locator(".tiles li").count() >= 1
        page.keyboard.press("Enter")
        page.wait_for_selector("#unit-title")
        assert page.inner_text("#unit-title").startswith("fc8/")
        page.goto(f"{address}#/picture/3")
        until(page, "document.getElementById('called')?.textContent.includes('.png')")


def test_the_wall_is_sorted_and_searched(chromium, address):
    with opened(chromium, f"{address}#conv5") as page:
        count = page.locator(".tiles li").count()
        assert count == 5
        orders = {}
        for order in ("strength", "purity", "likeness", "number"):
            page.select_option("#order", order)
            orders[order] = page.locator(".tiles a").evaluate_all("all => all.map(one => Number(one.dataset.unit))")
            assert sorted(orders[order]) == list(range(5))
        assert orders["number"] == list(range(5))
        page.select_option("#order", "random")
        page.wait_for_selector(".tiles .caption:has-text('correlation')")
        said = page.locator(".tiles .caption").all_inner_texts()
        alike = [float(text.split()[1]) for text in said if text.startswith("correlation")]
        assert alike == sorted(alike, reverse=True)
        assert len(alike) > 2
        assert orders["strength"][0] == orders["likeness"][0]
        page.fill("#find", "3")
        assert page.locator(".tiles li").count() == 1
        page.press("#find", "Enter")
        page.wait_for_selector("#unit-title")
        assert page.inner_text("#unit-title") == "conv5/3"
        page.fill("#find", "ALERT(1)")
        assert 0 < page.locator(".tiles li").count() <= count
        page.fill("#find", "no such class")
        assert page.locator(".tiles li").count() == 0


def test_the_keyboard_alone_is_enough(chromium, address):
    """From the top to a unit, to the next and the one before, and back to its tile; then a pixel of a picture."""
    with opened(chromium, f"{address}#conv3") as page:

        def focused():
            return page.evaluate("document.activeElement.dataset.unit ?? document.activeElement.id")

        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('.tiles') !== null"):
                break
        first = focused()
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("ArrowRight")
        second = focused()
        assert second != first
        page.keyboard.press("Enter")
        page.wait_for_selector("#unit-title")
        assert focused() == "unit-title"
        assert page.url.endswith(f"#conv3/{second}")
        page.keyboard.press("ArrowLeft")
        until(page, f"location.hash === '#conv3/{first}'")
        page.keyboard.press("ArrowRight")
        until(page, f"location.hash === '#conv3/{second}'")
        page.keyboard.press("Escape")
        until(page, "document.body.dataset.open === 'nothing'")
        until(page, f"document.activeElement.dataset.unit === '{second}'")
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.classList.contains('stage')"):
                break
        before = page.inner_text("#found h3")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        until(page, f"document.querySelector('#found h3').innerText !== {before!r}")


def test_a_units_tries(chromium, address):
    """Noise with its number, epochs, and the inputs below."""
    with opened(chromium, address) as page:
        open_unit(page, "conv3")
        slider = page.locator(".noise input[type=range]")
        slider.fill("100")
        until(page, "document.querySelector('.noise output').innerText.startsWith('100% random: rank')")
        noisy = float(page.inner_text(".noise output").partition("correlation ")[2].partition(",")[0])
        slider.fill("0")
        until(page, "document.querySelector('.noise output').innerText.startsWith('0% random: rank')")
        assert "correlation 1.00, SSIM 1.00" in page.inner_text(".noise output")
        assert noisy < 0.9
        last = pixels(page, ".nine .view")
        page.locator("input[aria-label=epoch]").fill("0")
        assert np.abs(pixels(page, ".nine .view") - last).mean() > 1
        page.click(".inputs a")
        until(page, "document.getElementById('unit-title').innerText.startsWith('conv2/')")


def test_your_own_picture(chromium, address, tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8)).save(tmp_path / "mine.png")
    (tmp_path / "none.txt").write_text("no picture")
    with opened(chromium, address, refused=1) as page:
        page.click("#to-picture")
        page.set_input_files("#file", tmp_path / "none.txt")
        until(page, "document.getElementById('upload-said').innerText.startsWith('the upload must be')")
        page.set_input_files("#file", tmp_path / "mine.png")
        until(page, "location.hash.startsWith('#/picture/u')")
        page.wait_for_selector("#found .seen img")
        shot(page, "own-picture")
        page.locator(".stage").click(position={"x": 20, "y": 30})
        until(page, "!document.querySelector('#found h3').innerText.includes('row 24, column 24')")
        page.check("input[value=cover]")
        page.wait_for_selector("#found .bars li")
        before = page.inner_text("#found .bars")
        area = page.locator(".stage").bounding_box()
        page.mouse.move(area["x"] + 30, area["y"] + 30)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] - 40, area["y"] + area["height"] - 60, steps=6)
        page.mouse.up()
        page.wait_for_load_state("networkidle")
        shot(page, "own-picture-covered")
        assert page.locator("#found .bars li").count() == 3
        assert page.locator("#mark.covering").count() == 1
        assert before
        page.check("input[value=look]")
        page.wait_for_selector("#found .seen a")
        page.click("#found .seen a")
        page.wait_for_selector("#unit-title")


def test_the_cameras_picture(chromium, address):
    with opened(chromium, f"{address}#/picture") as page:
        page.click("#camera")
        until(page, "location.hash.startsWith('#/picture/u')")
        page.wait_for_selector("#found .seen img, #found p")
        assert pixels(page, ".stage img").std() > 10


def test_a_picture_is_dropped_anywhere(chromium, address):
    with opened(chromium, address) as page:
        drawn = io.BytesIO()
        Image.new("RGB", (60, 60), (200, 30, 30)).save(drawn, "PNG")
        page.evaluate(
            """bytes => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
                const dropped = new DragEvent("drop", { dataTransfer: data, bubbles: true });
                document.getElementById("wall").dispatchEvent(dropped);
            }""",
            list(drawn.getvalue()),
        )
        until(page, "location.hash.startsWith('#/picture/u')")
        red, green, _ = pixels(page, ".stage img").mean((0, 1))
        assert red > 150 > green


@pytest.fixture
def gated(world, monkeypatch):
    """The address of a server in this process, and the gate that all batches of its pictures but the first wait at."""
    it, made, told, gate = explorer(world), [], [], threading.Semaphore(1)
    batches = it.search.batches
    it.search.batches = lambda first: (batch for batch in batches(first) if gate.acquire())
    server_of = server.uvicorn.Server
    monkeypatch.setattr(server.uvicorn, "Server", lambda config: made.append(server_of(config)) or made[0])
    thread = threading.Thread(target=server.serve, args=(it, server.bound("127.0.0.1", 0), told.append), daemon=True)
    thread.start()
    while not told:
        time.sleep(0.02)
    yield told[0], gate
    gate.release(99)
    made[0].should_exit = True
    thread.join(20)


def test_what_the_search_finds_takes_nothing_from_the_keyboard(chromium, gated):
    """A unit is closed while the page draws again: its tile has the focus, and keeps it when it draws once more."""
    focus, held, (address, gate) = "document.activeElement.dataset.unit === '{}'", [], gated
    with opened(chromium, address, is_searched=False) as page:
        until(page, "document.getElementById('searched').innerText === '1 of 18 pictures searched'")
        page.wait_for_selector(".tiles .tile[data-map]")
        open_unit(page)
        unit = page.url.partition("#conv3/")[2]
        page.route("**/data/network.json*", lambda asked: held.append(asked))
        gate.release()
        until_true(page, lambda: held)
        page.keyboard.press("Escape")
        until(page, "location.hash === '#conv3'")
        held[0].continue_()
        page.unroute("**/data/network.json*")
        until(page, focus.format(unit))
        gate.release(99)
        until(page, "document.getElementById('count').innerText.endsWith('over 18 pictures')")
        until(page, focus.format(unit))


def test_the_search_shows_what_it_has_and_can_be_stopped(chromium, gated):
    address, gate = gated
    with opened(chromium, address, is_searched=False) as page:
        until(page, "document.getElementById('searched').innerText === '1 of 18 pictures searched'")
        page.wait_for_selector(".tiles .tile[data-map]")
        assert page.locator("#search progress").evaluate("bar => bar.value") == pytest.approx(1 / 18)
        shot(page, "searching")
        page.click("#steer")
        until(page, "document.getElementById('steer').innerText === 'Continue'")
        stopped = page.inner_text("#searched")
        gate.release(99)
        page.wait_for_timeout(1000)
        assert page.inner_text("#searched") == stopped != "18 of 18 pictures searched"
        page.click("#steer")
        until(page, "document.getElementById('searched').innerText === '18 of 18 pictures searched'")
        until(page, "document.getElementById('count').innerText.endsWith('over 18 pictures')")
