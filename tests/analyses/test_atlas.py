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
    shape = {p.shape for p in card.projections + card.patches}
    assert len(shape) == 1
    assert atlas.panel(card).shape[0] == 2 * card.projections[0].shape[0] + 2
