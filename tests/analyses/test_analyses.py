"""The ablation's variants and runner, and the cards of the atlas."""

import numpy as np
import pytest
import torch
from small import inputs, network, photographs

from zfkernels import Deconvnet, ZFNet, top_activations
from zfkernels.analyses import ablation, atlas
from zfkernels.data.folders import Memory
from zfkernels.training.fit import Run
from zfkernels.training.recipe import Plan

# Ablation


def test_the_variants_are_those_of_table_3():
    rows = ablation.variants()
    parameters = {}
    for row in rows:
        with torch.device("meta"):
            parameters[row.name] = sum(p.numel() for p in ZFNet(**row.changes).parameters())
    assert parameters["as in the paper"] == 62_357_608
    assert parameters["without 6, 7"] == 62_357_608 - (9216 + 4096) * 4096 - 2 * 4096 - 4096000 + 9216000
    assert parameters["without 7"] == 62_357_608 - 4096 * 4097
    wide = next(row for row in rows if row.name == "3, 4, 5 of 512, 1024, 512")
    assert wide.changes["channels"] == (96, 256, 512, 1024, 512)
    assert wide.paper == (18.8, 37.5, 16.0)
    assert [row.changes["fc"] for row in rows if row.name.startswith("6, 7 of")] == [(2048, 2048), (8192, 8192)]


def test_the_runner_trains_each_variant_alike_and_continues(tmp_path):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 2
    images = torch.randint(0, 100, (12, 3, 74, 74), generator=generator) + 155 * labels[:, None, None, None]
    data = Memory(images.to(torch.uint8), labels)
    rows = [v for v in ablation.variants((4,) * 5, (8, 8)) if v.name in ("as in the paper", "without 3, 4")]
    run = Run(Plan(epochs=2, batch_size=4), data, data, side=(64, 64), scale=64.0)
    arguments = {"num_classes": 2, "image_size": 64, "weight_std": None}
    seen = []
    found = ablation.ablation(rows, run, arguments, out=tmp_path, report=seen.append)
    assert seen == found
    assert found[0].parameters > found[1].parameters
    assert found[0].train_error == found[0].error  # the same pictures, both with dropout off
    assert ablation.ablation(rows, run, arguments, out=tmp_path) == found
    assert "33.1   38.4   16.5" in ablation.line(found[0])
    assert ablation.line(found[1]).startswith("without 3, 4")


# Atlas


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
