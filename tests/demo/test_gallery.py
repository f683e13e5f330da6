"""The gallery: its sections drawn by a network that has hardly been trained, and its captions."""

import re

import pytest

from zfkernels import cli
from zfkernels.demo import gallery
from zfkernels.demo import network as small
from zfkernels.demo.captions import CAPTIONS
from zfkernels.demo.gallery_page import markdown
from zfkernels.training.recipe import Plan

Image = pytest.importorskip("PIL.Image")


def test_the_gallery_draws_each_section_with_its_caption(capsys, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(gallery, "EPOCHS", (1,))
    monkeypatch.setattr(small, "CROPS", 2)
    monkeypatch.setattr(small, "CHANNELS", (8,) * 5)
    monkeypatch.setattr(gallery, "PLAN", Plan(epochs=1, batch_size=10))
    names = ("training", "atlas", "evolution", "invariance", "occlusion", "neighbours", "probes")
    monkeypatch.setattr(gallery, "SECTIONS", tuple(section for section in gallery.SECTIONS if section[0] in names))
    code = cli.main(f"gallery --out {tmp_path}/out --work {tmp_path}/work".split())
    out, errors = capsys.readouterr()
    assert (code, errors) == (0, "")
    assert "README.md" in out
    text = (tmp_path / "out" / "README.md").read_text()
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", text)
    assert len(pictures) == 7
    assert (CAPTIONS["evolution"].seen[1], "evolution_conv4.jpg") in pictures
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert [file for _, file in pictures] == re.findall(r'<img src="(.*?)"', page)
    for file in re.findall(r'(?:src|srcset)="(.*?)"', page):
        assert (tmp_path / "out" / file).is_file()
    assert page.count("-dark.") == 7
    for _, file in pictures:
        with Image.open(tmp_path / "out" / file) as picture:
            assert picture.width > 250
    assert text.count("**Shows.**") == text.count("**Does not show.**") == 7
    assert "softmax on fc7" in text


def test_a_section_that_needs_no_small_network_trains_none(capsys, tmp_path, monkeypatch):
    """The three methods are compared on a network that others have trained, where its packages are installed."""
    monkeypatch.setattr(gallery, "train_network", lambda *a, **k: pytest.fail("a network was trained"))
    assert cli.main(f"gallery --only methods --out {tmp_path}/out --work {tmp_path}/work".split()) == 0
    said = capsys.readouterr().out
    assert ("left out" in said) == (not (tmp_path / "out" / "methods.jpg").exists())
    assert not (tmp_path / "work").exists()


def test_each_section_has_a_caption():
    assert list(CAPTIONS) == [name for name, _ in gallery.SECTIONS]
    for caption in CAPTIONS.values():
        assert caption.title
        assert caption.shows.startswith("`zfkernels ")
        assert caption.does_not_show
        assert len(caption.seen) == len(caption.pictures)


def test_a_captions_values_are_filled_in():
    text = markdown([gallery._section("correspondence", "TABLE", error=0.25)])
    assert "\n## Correspondence (Table 1)\n\n```\nTABLE\n```\n\n**Shows.** `zfkernels correspond`" in text
    assert "(25% of the held-out ones wrong)" in text
    with pytest.raises(KeyError, match="error"):
        markdown([gallery._section("correspondence")])
