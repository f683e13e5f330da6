"""Each checkpoint's strongest activation, against the maps and against a projection of it alone."""

from pathlib import Path

import pytest
import torch
from small import SMALL, inputs, network, photographs

from zfkernels import Deconvnet
from zfkernels.analyses import evolution
from zfkernels.models import checkpoint
from zfkernels.models.checkpoint import Network


def test_evolution_shows_each_checkpoints_strongest_activation():
    networks, x = {"one": network(1), "two": network(2)}, inputs(photographs(6))
    result = evolution.evolution(((name, model, x) for name, model in networks.items()), "conv4", [3, 0, 3])
    assert (result.layer, result.channels, list(result.moments)) == ("conv4", [3, 0, 3], ["one", "two"])
    for name, model in networks.items():
        maps = Deconvnet(model).activations(x, "conv4")
        for channel, moment in zip([3, 0, 3], result.moments[name], strict=True):
            assert moment.value == pytest.approx(float(maps[:, channel].max()), rel=1e-5)
            assert float(maps[moment.image, channel][moment.position]) == pytest.approx(moment.value, rel=1e-5)
            alone = Deconvnet(model).project(x[moment.image][None], "conv4", channel, moment.position)
            assert torch.allclose(moment.pixels, alone.pixels[0], rtol=1e-4, atol=1e-6)
            assert moment.box == tuple(alone.boxes[0].tolist())
    line = evolution.table(result).splitlines()[1]
    assert line.startswith(f"two           map 3: {result.moments['two'][0].value:.4g}  map 0: ")
    with pytest.raises(ValueError, match="channels must be from 0 to 7"):
        evolution.evolution([("one", networks["one"], x)], "conv4", [8])


def test_each_checkpoint_is_loaded_once_when_it_is_its_turn(tmp_path, monkeypatch):
    pixels, loaded = photographs(2), []
    for epoch in (2, 10):
        scale = torch.full((1, 1, 1), float(epoch))
        saved = Network(network(epoch), ["a", "b", "c"], torch.full((3, 48, 48), 120.0), scale, (48, 48))
        checkpoint.save(tmp_path / f"epoch_{epoch:03d}.pt", saved, SMALL)
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda file: loaded.append(file.name) or load(file))
    files = evolution.checkpoints(sorted(tmp_path.iterdir()))
    assert list(files) == ["epoch 2", "epoch 10"]
    networks = evolution.load_each(files, checkpoint.load, pixels)
    name, _, images = next(networks)
    assert (name, loaded) == ("epoch 2", ["epoch_002.pt"])
    assert torch.equal(images, (pixels.float() - 120) / 2)
    evolution.evolution(networks, "conv3", [1])
    assert loaded == ["epoch_002.pt", "epoch_010.pt"]
    with pytest.raises(FileNotFoundError, match=r"there is no weights file none\.pt"):
        evolution.checkpoints([Path("none.pt")])


def test_the_figure_has_a_projection_and_a_patch_for_each_map_and_checkpoint():
    pixels = photographs(3)
    result = evolution.evolution([(name, network(1), inputs(pixels)) for name in "ab"], "conv2", [0, 1, 5])
    drawn = evolution.figure(result, pixels)
    assert len([axes for axes in drawn.axes if axes.images]) == 2 * 3 * 2
    assert "conv2: strongest activation over 3 images" in drawn.get_suptitle()
    named = [(axes, text.get_text()) for axes in drawn.axes for text in axes.texts]
    assert [name for _, name in named] == ["a", "b"]  # columns, each above its first picture
    assert [axes.get_title() for axes, _ in named] == [f"{result.moments[name][0].value:.3g}" for name in "ab"]
    rows = [axes.get_ylabel() for axes in drawn.axes if axes.get_ylabel()]
    assert rows == ["map 0", "patch", "map 1", "patch", "map 5", "patch"]
