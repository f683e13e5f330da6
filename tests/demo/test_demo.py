"""The photographs, the recipe and the page, from one demonstration too short to learn anything."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from zfkernels import ZFNet
from zfkernels.analyses.activations import TopActivations, diverse
from zfkernels.data.folders import Memory
from zfkernels.data.photographs import CLASSES, Photographs, held_out_cells, overlap
from zfkernels.demo import demo, real
from zfkernels.demo.network import SIDE
from zfkernels.models import checkpoint
from zfkernels.models.pretrained import EFFICIENTNET_LITE0
from zfkernels.training.fit import evaluate, fit
from zfkernels.training.run import Run

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as few:
        few.setattr(real, "PATCH", 112)
        few.setattr(real, "STRIDE", 112)
        page, findings = demo.run(out, seed=5, epochs=1, crops=4)
    return page, findings


def test_training_and_held_out_crops_share_no_pixel():
    photographs = Photographs(side=32)
    training = photographs.training_crops(60, np.random.default_rng(0))
    held_out = photographs.held_out_crops(60, np.random.default_rng(0))
    for label, pixels in enumerate(photographs.pixels):
        seen, kept = np.zeros(pixels.shape[:2], bool), np.zeros(pixels.shape[:2], bool)
        for crops, mask in ((training, seen), (held_out, kept)):
            boxes = crops.boxes[crops.labels == label].tolist()
            assert len(boxes) == 60
            for top, left, bottom, right in boxes:
                assert 0 <= top < bottom <= pixels.shape[0]
                assert 0 <= left < right <= pixels.shape[1]
                assert bottom - top == right - left
                mask[top:bottom, left:right] = True
        assert seen.any()
        assert kept.any()
        assert not (seen & kept).any()
        cells = np.zeros(pixels.shape[:2], bool)
        for top, left, bottom, right in photographs.cells[label]:
            cells[top:bottom, left:right] = True
        assert not (seen & cells).any()
        assert (kept <= cells).all()
        assert 0.1 < cells.mean() < 0.3


def test_a_crop_is_the_photograph_inside_its_box():
    photographs = Photographs(side=24, classes=("coffee", "brick"))
    crops = photographs.training_crops(3, np.random.default_rng(1))
    for image, label, (top, left, bottom, right) in zip(crops.images, crops.labels, crops.boxes.tolist(), strict=True):
        part = Image.fromarray(photographs.pixels[label][top:bottom, left:right])
        expected = np.asarray(part.resize((24, 24), Image.Resampling.BICUBIC))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_crops_follow_the_seed():
    photographs = Photographs(side=16, classes=("cat",))
    same = [photographs.training_crops(5, np.random.default_rng(3)) for _ in range(2)]
    other = photographs.training_crops(5, np.random.default_rng(4))
    assert torch.equal(same[0].images, same[1].images)
    assert not torch.equal(same[0].boxes, other.boxes)


@pytest.mark.parametrize("shape", [(512, 512), (300, 451), (451, 300)])
def test_cells_are_squares_inside_the_photograph_that_do_not_overlap(shape):
    cells = held_out_cells(*shape)
    assert len(cells) >= 3
    for i, cell in enumerate(cells):
        assert cell[2] - cell[0] == cell[3] - cell[1] == min(shape) // 4
        assert cell[2] <= shape[0]
        assert cell[3] <= shape[1]
        assert not any(overlap(cell, other) for other in cells[:i])


def test_overlap_means_a_common_pixel():
    assert overlap((0, 0, 4, 4), (3, 3, 5, 5))
    assert not overlap((0, 0, 4, 4), (4, 0, 8, 4))
    assert not overlap((0, 0, 4, 4), (0, 4, 4, 8))


def small_task():
    """Bright against dark images, with noise: learnable in seconds by a net of a few maps."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randint(0, 100, (64, 3, 48, 48), generator=generator) + 155 * labels[:, None, None, None]
    return Memory(images.to(torch.uint8), labels)


def trained(seed):
    torch.manual_seed(seed)
    model = ZFNet(2, image_size=48, channels=(8, 8, 8, 8, 8), fc=(32, 32), weight_std=None, without=("pool5",))
    task = small_task()
    plan = replace(demo.DEMO_PLAN, epochs=5, batch_size=8, seed=seed)
    run = Run(plan, task, task, (48, 48), 64.0, torch.full((3, 48, 48), 127.0))
    return model, run, fit(model, run)


def test_training_learns_and_holds_every_filter_to_the_clamp():
    model, run, history = trained(0)
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy > 0.9
    assert all(epoch.images_per_second > 0 for epoch in history)
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        assert model.get_submodule(name).weight.square().mean((1, 2, 3)).sqrt().max() <= 0.1 + 1e-6
    logits = model.eval()((run.training.images.float() - 127.0) / 64.0)
    right = logits.argmax(1) == torch.tensor(run.training.labels)
    assert right.float().mean().item() == pytest.approx(history[-1].accuracy)
    assert evaluate(model, run, run.validation, run.mean)[0] == history[-1].error


def test_the_demos_rate_falls_twice():
    plan = replace(demo.DEMO_PLAN, epochs=10)
    rates = [plan.rate([0.5] * epochs) for epochs in (0, 4, 5, 7, 8, 9)]
    assert rates == pytest.approx([0.006, 0.006, 0.0012, 0.0012, 0.00024, 0.00024])


def test_training_repeats_bit_for_bit():
    (first, _, history), (second, _, again), (other, _, _) = trained(1), trained(1), trained(2)
    assert [(e.loss, e.accuracy) for e in history] == [(e.loss, e.accuracy) for e in again]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_normalise_subtracts_the_mean_before_it_scales():
    mean, scale = torch.tensor([[[4.0, 8.0]]]), torch.full((1, 1, 1), 2.0)
    network = checkpoint.Network(torch.nn.Identity(), [], mean, scale, (1, 2))
    images = torch.tensor([[[[10, 20]]]], dtype=torch.uint8)
    assert network.normalise(images).tolist() == [[[[3.0, 6.0]]]]


def test_the_page_needs_nothing_that_is_not_beside_it(made):
    page, _ = made
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(sources) > 20
    for source in sources:
        with Image.open(page.parent / source) as image:
            assert min(image.size) > 20
    assert not re.search(r"https?://|<script|@import|url\(", text)
    for name in CLASSES:
        assert name in text


def test_the_page_shows_what_was_found(made):
    page, findings = made
    text = page.read_text(encoding="utf-8")
    assert [layer.name for layer in findings.layers] == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    for layer in findings.layers:
        assert layer.tops
        for top in layer.tops:
            assert f"{layer.name}_map{top.channel:03d}.png" in text
            assert len(top.parts) == len(top.patches) == len(top.frames) == 9
            assert max(top.shape) <= SIDE
            assert (top.values[:-1] >= top.values[1:]).all()
            assert all(part.any() for part in top.parts)
    assert f"{findings.history[-1].accuracy:.1%}" in text
    assert len(findings.occluded) == demo.OCCLUSIONS


def test_the_page_has_a_second_part_or_says_how_to_get_it(made):
    page, findings = made
    text = page.read_text(encoding="utf-8").replace("&#39;", "'")
    assert (findings.real is None) == bool(EFFICIENTNET_LITE0.missing())
    if findings.real is None:
        assert EFFICIENTNET_LITE0.missing() in text
    else:
        assert findings.real.why_guided in text
        assert all(said in text for _, said in findings.real.occluded)


def test_the_gallery_is_one_picture(made):
    with Image.open(made[0].parent / "gallery.png") as image:
        assert image.width > 800
        assert image.height > 800


def test_the_checkpoint_gives_back_the_network(made):
    page, findings = made
    network = checkpoint.load(page.parent / "zfnet.pt")
    assert network.classes == findings.classes
    assert torch.equal(network.model.conv1.weight, findings.filters)
    assert not network.model.training
    images = torch.stack([o.image for o in findings.occluded])
    logits = network.model((images.float() - network.mean) / network.scale).detach()
    for o, row in zip(findings.occluded, logits, strict=True):
        assert row.softmax(0)[o.result.target].item() == pytest.approx(o.result.clear_probability, abs=1e-5)


def test_a_class_that_this_scikit_image_lacks_is_named(monkeypatch):
    monkeypatch.setitem(CLASSES, "yeti", "yeti.png")
    with pytest.raises(FileNotFoundError, match=re.escape("does not carry yeti.png; pip install")):
        Photographs(side=16, classes=("yeti",))


def test_maps_take_turns_by_the_photograph_they_prefer():
    top = TopActivations(
        values=torch.tensor([[9.0, 9.0], [8.0, 8.0], [7.0, 7.0], [0.0, 0.0], [6.0, 6.0]]),
        images=torch.tensor([[0, 1], [0, 1], [2, 3], [2, 3], [3, 2]]),
        positions=torch.zeros(5, 2, 2, dtype=torch.int64),
    )
    assert diverse(top, torch.tensor([4, 4, 6, 6])) == [0, 2, 1, 4]
    weakest = top._replace(values=torch.tensor([[9.0, 1.0], [8.0, 2.0], [7.0, 3.0], [9.0, 0.0], [6.0, 4.0]]))
    assert diverse(weakest, torch.tensor([4, 4, 6, 6])) == [4, 1, 2, 0]
