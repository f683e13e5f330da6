"""The cards of the atlas: the projection and the patch of each unit."""

import numpy as np
import pytest
import torch
from small import inputs, network, photographs

from zfkernels import Deconvnet, top_activations
from zfkernels.analyses import atlas


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


def drawn(side, boxes, size=(40, 30)):
    k = len(boxes)
    image = torch.arange(3 * size[0] * size[1]).view(3, *size).remainder(251).to(torch.uint8)
    numbers, pixels = torch.zeros(k, dtype=torch.int64), torch.randn(k, 3, *size)
    return atlas.Card(0, torch.ones(k), numbers, image.expand(k, -1, -1, -1), pixels, torch.tensor(boxes), side)


def test_a_unit_that_sees_little_fills_its_tile():
    """A field that the border cuts is enlarged, its proportions kept; one that is whole is shown as it is."""
    card = drawn(12, [[10, 10, 22, 22], [0, 0, 6, 6], [0, 12, 4, 24], [34, 0, 40, 12]])
    assert card.shape == (12, 12)
    assert card.frames == [(10, 10, 22, 22), (0, 0, 6, 6), (0, 12, 12, 24), (28, 0, 40, 12)]
    _, patches = atlas.grids(card, zoom=2, gap=0)
    assert np.array_equal(patches[:24, 24:], card.patches[1].repeat(4, 0).repeat(4, 1))
    assert np.array_equal(patches[:24, :24], card.patches[0].repeat(2, 0).repeat(2, 1))


def test_a_field_larger_than_the_image_shows_the_image():
    card = drawn((50, 50), [[0, 0, 40, 30], [0, 0, 20, 15]])
    assert card.shape == (40, 30)
    assert card.frames == [(0, 0, 40, 30), (0, 0, 20, 15)]
    assert atlas.grids(card, gap=0)[0].shape == (40, 60, 3)


def test_all_tiles_of_a_layer_are_of_one_shape_however_few_units_are_projected_together(monkeypatch):
    """Some maps' strongest units lie at the border alone, where they see less."""
    model, pixels = network(), photographs(6)
    deconv = Deconvnet(model)
    top = top_activations(deconv, [inputs(pixels)], "conv3", k=2)
    top.positions[1:3] = 0
    read = lambda numbers: (inputs(pixels[numbers]), pixels[numbers])  # noqa: E731
    monkeypatch.setattr(atlas, "UNITS_AT_ONCE", 2)
    cards = list(atlas.cards(deconv, top, "conv3", read))
    assert len(cards) > 3
    assert len({card.shape for card in cards}) == 1
    assert min(card.frames[0][2] - card.frames[0][0] for card in cards) < cards[0].shape[0]
    assert len({atlas.panel(card).shape for card in cards}) == 1
