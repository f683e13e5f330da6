"""The cards of the atlas: the projection and the patch of each unit."""

import numpy as np
import pytest
import torch
from small import inputs, network, photographs

from zfkernels import Deconvnet, top_activations
from zfkernels.analyses import atlas
from zfkernels.drawing.tiles import frame


@pytest.mark.parametrize("layer", ["conv1", "conv3", "conv5"])
def test_an_atlas_card_holds_the_projection_and_the_patch_of_each_unit(layer):
    model, pixels = network(), photographs(6)
    deconv = Deconvnet(model)
    top = top_activations(deconv, [inputs(pixels)], layer, k=4)
    read = lambda numbers: (inputs(pixels[numbers]), pixels[numbers])  # noqa: E731
    cards = list(atlas.cards(deconv, top, layer, read))
    assert [card.channel for card in cards] == torch.nonzero(top.values[:, 0] > 0)[:, 0].tolist()
    card = cards[1]
    for rank in range(4):
        image = int(top.images[card.channel, rank])
        alone = deconv.project(inputs(pixels[image])[None], layer, card.channel, top.positions[card.channel, rank])
        t, left, b, r = card.frames[rank]
        at, aleft, ab, ar = alone.boxes[0].tolist()
        assert t <= at < ab <= b
        assert left <= aleft < ar <= r
        part = alone.pixels[0, :, t:b, left:r]
        drawn = (card.projections[rank].astype(float) - 128) / 127 * card.limit
        inside = part.abs() <= card.limit * 0.99
        assert torch.allclose(
            torch.from_numpy(drawn).permute(2, 0, 1)[inside], part.double()[inside], atol=card.limit / 127
        )
        assert np.array_equal(card.patches[rank], pixels[image, :, t:b, left:r].permute(1, 2, 0).numpy())
    assert [p.shape for p in card.projections] == [p.shape for p in card.patches]
    assert atlas.panel(card, zoom=3).shape == (2 * 3 * card.shape[0] + 2, 4 * 3 * card.shape[1] + 2 * 2 + 6, 3)


def test_a_unit_that_sees_little_fills_its_tile():
    """A field that the border cuts is enlarged, its proportions kept; one that is whole is shown as it is."""
    shape, size = (12, 12), (40, 30)
    boxes = [[10, 10, 22, 22], [0, 0, 6, 6], [0, 12, 4, 24], [34, 0, 40, 12]]
    frames = [atlas.filling(box, shape, size) for box in boxes]
    assert frames == [(10, 10, 22, 22), (0, 0, 6, 6), (0, 12, 12, 24), (28, 0, 40, 12)]
    image = np.arange(3 * 40 * 30).reshape(40, 30, 3).astype(np.uint8)
    patches = [image[top:bottom, left:right] for top, left, bottom, right in frames]
    parts = [torch.randn(3, *patch.shape[:2]) for patch in patches]
    card = atlas.Card(0, torch.ones(4), torch.zeros(4, dtype=torch.int64), shape, frames, parts, patches)
    _, grid = atlas.grids(card, zoom=2, gap=0)
    assert np.array_equal(grid[:24, 24:], patches[1].repeat(4, 0).repeat(4, 1))
    assert np.array_equal(grid[:24, :24], patches[0].repeat(2, 0).repeat(2, 1))


def test_a_field_larger_than_the_image_shows_the_image():
    shape = atlas.fitted((50, 50), (40, 30))
    assert shape == (40, 30)
    boxes = [[0, 0, 40, 30], [0, 0, 20, 15], [0, 0, 21, 15], [20, 0, 40, 1]]
    frames = [(0, 0, 40, 30), (0, 0, 20, 15), (0, 0, 21, 16), (20, 0, 40, 15)]
    assert [atlas.filling(box, shape, (40, 30)) for box in boxes] == frames


def test_all_tiles_of_a_layer_are_of_one_shape_however_few_units_are_projected_together(monkeypatch):
    """Some maps' strongest units lie at the border alone, where they see less."""
    model, pixels = network(), photographs(6)
    deconv = Deconvnet(model)
    top = top_activations(deconv, [inputs(pixels)], "conv2", k=2)
    top.positions[1:3] = 0
    read = lambda numbers: (inputs(pixels[numbers]), pixels[numbers])  # noqa: E731
    together = list(atlas.cards(deconv, top, "conv2", read))
    monkeypatch.setattr(atlas, "UNITS_AT_ONCE", 3)
    monkeypatch.setattr(atlas, "PARTS_HELD", 1)
    alone = list(atlas.cards(deconv, top, "conv2", read))
    assert len(together) > 3
    for card, other in zip(together, alone, strict=True):
        assert card.channel == other.channel
        assert card.shape == other.shape == together[0].shape
        assert card.frames == other.frames
        assert all(map(np.array_equal, card.patches, other.patches))
        assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(card.parts, other.parts, strict=True))
    small = [card.channel for card in together if card.frames[0][2] - card.frames[0][0] < card.shape[0]]
    assert {1, 2} & set(small)
    assert len({atlas.panel(card).shape for card in together}) == 1


def test_an_image_goes_up_once(monkeypatch):
    """However many maps' units it holds; again only where its units are more than are projected at once."""
    model, pixels = network(), photographs(6)
    deconv, asked = Deconvnet(model), []
    top = top_activations(deconv, [inputs(pixels)], "conv3", k=4)
    read = lambda numbers: asked.extend(numbers) or (inputs(pixels[numbers]), pixels[numbers])  # noqa: E731
    monkeypatch.setattr(atlas, "UNITS_AT_ONCE", 8)
    cards = list(atlas.cards(deconv, top, "conv3", read))
    calls = -(-len(cards) * 4 // 8)
    assert calls > 2
    shown = {int(number) for card in cards for number in card.numbers}
    assert set(asked[1:]) == shown  # after one look at a picture's size
    assert len(asked[1:]) < len(shown) + calls
    monkeypatch.setattr(atlas, "UNITS_AT_ONCE", 288)
    monkeypatch.setattr(atlas, "KEPT", 1)
    asked.clear()
    assert len(list(atlas.cards(deconv, top, "conv3", read))) == len(cards)
    assert sorted(asked[1:]) == sorted(shown)


def test_tiles_can_be_of_one_size_in_the_images_pixels():
    """As the explorer has them, whose boxes lie over pictures."""
    model, pixels = network(), photographs(6)
    deconv = Deconvnet(model)
    top = top_activations(deconv, [inputs(pixels)], "conv2", k=3)
    top.positions[:, 1] = 0
    read = lambda numbers: (inputs(pixels[numbers]), pixels[numbers])  # noqa: E731
    for card in atlas.cards(deconv, top, "conv2", read, side=15, framed=frame):
        assert {(bottom - top_, right - left) for top_, left, bottom, right in card.frames} == {(15, 15)}
        assert {patch.shape for patch in card.patches} == {(15, 15, 3)}
