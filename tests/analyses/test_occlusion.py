"""Occlusion maps against a naive loop, closed forms and hand-worked grids."""

import itertools
from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import error
from matplotlib.axes import Axes
from torch import nn

import zfkernels as zf
from zfkernels.analyses import covering, occlusion
from zfkernels.analyses.occlusion import occlusion_map
from zfkernels.graph import run as graph_run
from zfkernels.graph import windowed


def small_net(channels=3, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, classes)
    ).double()


def picture(height, width, channels=3):
    return torch.randn(channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cover(image, box, fill):
    top, left, bottom, right = box
    covered = image.clone()
    for channel in range(len(image)):
        covered[channel, top:bottom, left:right] = fill[channel]
    return covered


@pytest.mark.parametrize("size", [(17, 29), (29, 17)])
@pytest.mark.parametrize(
    ("patch", "stride", "batch_size"), [(5, 3, 1), ((4, 7), (2, 7), 7), (6, 6, 1000), ((17, 17), 4, 3), (2, 1, 64)]
)
def test_equals_a_naive_loop(size, patch, stride, batch_size):
    model, image, fill = small_net(), picture(*size), [0.5, -1.0, 2.0]
    result = occlusion_map(
        model, image, 2, patch=patch, stride=stride, fill=fill, layer="1", channel=3, batch_size=batch_size
    )
    (patch_h, patch_w), (stride_h, stride_w) = (v if isinstance(v, tuple) else (v, v) for v in (patch, stride))
    height, width = size
    tops, lefts = [0], [0]
    while tops[-1] + patch_h < height:
        tops.append(tops[-1] + stride_h)
    while lefts[-1] + patch_w < width:
        lefts.append(lefts[-1] + stride_w)
    assert result.probability.shape == (len(tops), len(lefts))
    for r, top in enumerate(tops):
        for c, left in enumerate(lefts):
            box = (top, left, min(top + patch_h, height), min(left + patch_w, width))
            assert tuple(result.boxes[r, c].tolist()) == box
            covered = cover(image, box, fill)[None]
            logits = model(covered)[0]
            torch.testing.assert_close(result.logit[r, c], logits[2], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(result.probability[r, c], logits.softmax(0)[2], rtol=1e-12, atol=1e-12)
            assert result.label[r, c] == logits.argmax()
            activity = model[:2](covered)[0, 3].sum()
            torch.testing.assert_close(result.activity[r, c], activity, rtol=1e-12, atol=1e-12)


def test_the_logit_of_a_linear_model_drops_by_the_sum_of_w_times_x_minus_fill():
    height, width = 11, 19
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * height * width, 2)).double()
    image, fill = picture(height, width), 0.25
    result = occlusion_map(model, image, 1, patch=(4, 6), stride=(3, 5), fill=fill)
    terms = model[1].weight[1].detach().reshape(3, height, width) * (image - fill)
    for r, c in [(r, c) for r in range(result.logit.shape[0]) for c in range(result.logit.shape[1])]:
        top, left, bottom, right = result.boxes[r, c].tolist()
        drop = terms[:, top:bottom, left:right].sum()
        torch.testing.assert_close(result.clear_logit - result.logit[r, c], drop, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("patch", "stride"), [(5, 5), (5, 2), ((3, 8), (3, 5)), (4, 4)])
def test_every_pixel_is_covered_and_no_window_leaves_the_image(patch, stride):
    boxes = occlusion_map(small_net(), picture(13, 22), 0, patch=patch, stride=stride).boxes
    covered = torch.zeros(13, 22, dtype=torch.bool)
    for top, left, bottom, right in boxes.reshape(-1, 4).tolist():
        assert 0 <= top < bottom <= 13
        assert 0 <= left < right <= 22
        covered[top:bottom, left:right] = True
    assert covered.all()


def test_height_and_width_are_not_swapped():
    class CornerOnly(nn.Module):
        def forward(self, images):
            corner = images[:, :, 0, -1].sum(1)  # the top right pixel
            return torch.stack([corner, -corner], dim=1)

    image = torch.ones(3, 8, 20)
    result = occlusion_map(CornerOnly(), image, 0, patch=4, stride=4, fill=0.0)
    assert result.logit.shape == (2, 5)
    expected = torch.full((2, 5), 3.0)
    expected[0, 4] = 0.0
    assert torch.equal(result.logit, expected)


def test_by_default_the_target_is_the_clear_label_and_the_fill_the_mean_colour():
    model, image = small_net(), picture(16, 24)
    result = occlusion_map(model, image)
    mean = image.mean(dim=(1, 2))
    assert result.target == result.clear_label == int(model(image[None]).argmax())
    again = occlusion_map(model, image, result.target, patch=3, stride=1, fill=mean)
    assert torch.equal(result.logit, again.logit)
    assert result.clear_probability == pytest.approx(model(image[None]).softmax(1)[0, result.target].item(), rel=1e-12)


def test_an_image_as_fill_is_pasted_in_place():
    model, image = small_net(), picture(9, 12)
    logits = occlusion_map(model, image, 1, patch=3, fill=image).logit
    torch.testing.assert_close(logits, model(image[None])[0, 1].expand_as(logits), rtol=1e-12, atol=1e-12)


def test_the_strongest_map_of_the_clear_image_is_summed():
    model, image = small_net(), picture(9, 12)
    maps = model[:2](image[None])[0]
    result = occlusion_map(model, image, 0, patch=3, layer="1")
    assert result.channel == int(maps.amax(dim=(1, 2)).argmax())
    assert result.clear_activity == pytest.approx(maps[result.channel].sum().item(), rel=1e-12)
    with torch.no_grad():  # a map of one high peak beside one that is high everywhere
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
        model[0].weight[4, 0, 1, 1] = 1
    peak = torch.zeros_like(image)
    peak[0, 4, 4] = 2
    assert occlusion_map(model, peak, 0, patch=3, layer="1").channel == 4
    with torch.no_grad():  # values below 0 are summed as they are
        model[0].bias.fill_(-1)
    below = occlusion_map(model, peak, 0, patch=3, layer="0", channel=0)
    assert below.activity.unique().tolist() == [-9.0 * 12]
    assert occlusion_map(model, image, 0, patch=3).activity is None


def test_dropout_is_off_during_the_run_and_each_training_flag_is_put_back():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 6 * 6, 2), nn.Identity()).double()
    model[3].eval()
    image = picture(6, 6)
    first, second = occlusion_map(model, image, 0, patch=2), occlusion_map(model, image, 0, patch=2)
    assert torch.equal(first.logit, second.logit)
    assert [module.training for module in model] == [True, True, True, False]
    assert not model[0]._forward_hooks


def test_the_image_is_left_as_it_was():
    image = picture(6, 8)
    before = image.clone()
    occlusion_map(small_net(), image, 0, patch=2, fill=9.0)
    assert torch.equal(image, before)


# Only what a window reaches is recomputed


class Squeeze(nn.Module):
    """A gate by the mean of a map, a channel shuffle, sigmoids, a split: what has no step of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.act = nn.SiLU()
        self.down, self.up = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.dilated = nn.Conv2d(4, 4, 3, dilation=2, padding=2)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.act(self.stem(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        x = torch.tanh(self.depthwise(x * gate)) + x.mean((2, 3), keepdim=True)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = x.chunk(2, 1)
        x = torch.cat([F.hardswish(self.dilated(left)), right], 1)
        return self.fc(self.norm(x).amax((2, 3)))


class BelowZero(nn.Module):
    """What is pooled is negative everywhere, so that 0 around a map would be its maximum."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 5, 3, 1, 1), nn.MaxPool2d(3, 2, 1)
        self.head = nn.Conv2d(5, 4, 3, 2)

    def forward(self, x):
        return self.head(self.pool(self.conv(x) - 1000)).mean((2, 3))


NETWORKS = {
    "ZFNet": (lambda: zf.ZFNet(4, channels=(6, 8, 6, 6, 5), fc=(9, 9), image_size=(90, 77)), (90, 77), "conv4"),
    "ResNet": (nets.ResNet, (45, 38), "layer2.0"),
    "Inception": (nets.Inception, (41, 50), "five.3"),
    "DenseNet": (nets.DenseNet, (27, 34), "transition.1"),
    "MobileNet": (nets.MobileNet, (33, 26), "expand.1"),
    "Padded": (nets.Padded, (43, 38), "pool"),
    "VGG with batch norms": (lambda: nets.vgg11(batch_norm=True), (70, 61), "features.8"),
    "functional": (nets.Functional, (41, 35), "conv_b"),
    "odd": (nets.odd, (23, 29), "6"),
    "Squeeze": (Squeeze, (37, 42), "dilated"),
    "BelowZero": (BelowZero, (37, 42), "pool"),
}


@pytest.mark.filterwarnings("error:each window will cost", "ignore:Using padding='same'")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("patch", [(9, 12), (3, 2), 1])
def test_equals_whole_images(name, patch, monkeypatch):
    """The network run by regions against the same network run on covered copies by torch."""
    make, size, layer = NETWORKS[name]
    model, image = nets.alive(make()), nets.images(1, *size)[0]
    stride = 5 if patch == (9, 12) else patch
    keep = dict.fromkeys(("patch", "stride"), patch) | {"stride": stride} | {"fill": [0.3, -1.0, 2.0], "layer": layer}
    if patch == 1:
        image = image[:, : size[0], : size[1]]
        monkeypatch.setattr(
            occlusion, "_windows", lambda *_: torch.tensor([[[r, c, r + 1, c + 1]] for r, c in CORNERS])
        )
    monkeypatch.setattr(covering, "MOST", float("inf"))
    found = occlusion_map(model, image, 1, **keep, batch_size=13)
    monkeypatch.setattr(covering, "MOST", 0)
    monkeypatch.setattr(graph_run, "PASS_ELEMENTS_CPU", 10**5)
    fused = occlusion_map(model, image, 1, **keep)
    monkeypatch.setattr(covering, "_traced", lambda *_: None)
    expected = occlusion_map(model, image, 1, **keep)
    assert error(fused.logit, expected.logit.detach()) < 1e-11
    assert error(fused.activity, expected.activity.detach()) < 1e-11
    assert expected.logit.std() > 0
    assert found.channel == expected.channel
    for part in ("logit", "probability", "activity"):
        assert error(getattr(found, part), getattr(expected, part).detach()) < 1e-11, part
    assert torch.equal(found.label, expected.label)
    assert found.clear_logit == pytest.approx(expected.clear_logit, rel=1e-11)
    assert found.clear_activity == pytest.approx(expected.clear_activity, rel=1e-11)


CORNERS = [(0, 0), (0, 22), (22, 0), (22, 25), (11, 13)]


def test_what_is_recomputed_is_what_the_window_reaches(monkeypatch):
    """Of ZFNet's convolutions: the sizes that the arithmetic of windows gives for 20 of 224 pixels."""
    model = zf.ZFNet(4, channels=(4, 4, 4, 4, 4), fc=(4, 4))
    sizes = []
    original = windowed.Conv.convolve

    def watched(step, x, padding, rules):
        y = original(step, x, padding, rules)
        sizes.append((y.shape[0], y.shape[2], y.shape[3]))
        return y

    monkeypatch.setattr(windowed.Conv, "convolve", watched)
    image = nets.images(1, 224, 224)[0].float()
    patch = 20
    monkeypatch.setattr(occlusion, "_windows", lambda *_: torch.tensor([[[100, 104, 120, 124]]]))
    occlusion_map(model, image, 0, patch=patch)
    assert sizes[:5] == [(1, n, n) for n in (110, 26, 13, 13, 13)]  # the clear image
    assert sizes[5:] == [(1, 13, 13), (1, 6, 6), (1, 6, 6), (1, 8, 8), (1, 10, 10)]


def test_a_window_over_what_is_not_finite():
    """NaN under the window is gone with it, and elsewhere is not."""
    model = nets.alive(nets.ResNet())
    image = nets.images(1, 45, 38)[0]
    image[:, 3, 4] = float("nan")
    result = occlusion_map(model, image, 0, patch=8, stride=8, fill=0.0)
    finite = torch.isfinite(result.logit)
    assert finite[0, 0]
    assert finite.sum() == 1


class Looking(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        return x.amax((2, 3)) if x.sum() > 0 else x.mean((2, 3))


def test_what_cannot_be_traced_is_run_whole_after_a_warning():
    model, image = nets.alive(Looking()), nets.images(1, 12, 9)[0]
    with pytest.warns(UserWarning, match="each window will cost a whole forward pass, because: cannot trace Looking"):
        result = occlusion_map(model, image, 0, patch=4, layer="conv", channel=2, batch_size=1)
    for r, c in ((0, 0), (2, 1)):
        covered = cover(image, result.boxes[r, c].tolist(), image.mean(dim=(1, 2)))[None]
        torch.testing.assert_close(result.logit[r, c], model(covered)[0, 0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result.activity[r, c], model.conv(covered)[0, 2].sum(), rtol=1e-12, atol=1e-12)


def test_hooks_are_run():
    model, image = small_net(), picture(12, 12)
    before = occlusion_map(model, image, 0, patch=4, layer="1", channel=1)
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    after = occlusion_map(model, image, 0, patch=4, layer="1", channel=1)
    torch.testing.assert_close(after.activity, 2 * before.activity, rtol=1e-12, atol=1e-12)


def test_fills_by_name():
    model, image = small_net(), picture(16, 24)
    by_name = occlusion_map(model, image, 0, patch=4, fill="mean")
    assert torch.equal(by_name.logit, occlusion_map(model, image, 0, patch=4).logit)
    blurred = occlusion._blurred(image, 2.0)
    assert torch.equal(
        occlusion_map(model, image, 0, patch=4, fill="blur").logit,
        occlusion_map(model, image, 0, patch=4, fill=blurred).logit,
    )
    for patch in ((4, 8), (8, 4)):
        expected = occlusion_map(model, image, 0, patch=patch, fill=occlusion._blurred(image, 4.0))
        assert torch.equal(occlusion_map(model, image, 0, patch=patch, fill="blur").logit, expected.logit)
    flat = torch.full_like(image, 3.0)
    torch.testing.assert_close(occlusion._blurred(flat, 2.0), flat)
    spot = torch.zeros_like(image)
    spot[:, 8, 12] = 1
    weights = torch.exp(-((torch.arange(24) - 12.0) ** 2) / 8).double()
    row = occlusion._blurred(spot, 2.0)[0, 8]
    torch.testing.assert_close(row[9:16] / row[12], weights[9:16], rtol=0.02, atol=0.0)  # the edges' share


def test_the_minimum_is_on_the_object():
    """A scene with one known object: the answer falls where it is covered, and nowhere else."""
    template = nets.images(1, 9, 9, seed=5)[0]
    model = nn.Sequential(nn.Conv2d(3, 1, 9), nn.ReLU(), nn.MaxPool2d(24), nn.Flatten(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(template[None])
        model[0].bias.zero_()
        model[4].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    scene = 0.01 * nets.images(1, 32, 32, seed=6)[0]
    scene[:, 17:26, 5:14] = template
    result = occlusion_map(model, scene, 0, patch=9, stride=1, fill=0.0)
    r, c = divmod(int(result.logit.argmin()), result.logit.shape[1])
    assert result.boxes[r, c].tolist() == [17, 5, 26, 14]
    apart = (result.boxes[..., 2] <= 17) | (result.boxes[..., 0] >= 26) | (result.boxes[..., 3] <= 5)
    torch.testing.assert_close(
        result.logit[apart], torch.full_like(result.logit[apart], result.clear_logit), rtol=1e-9, atol=0.0
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image": [[1.0]]}, TypeError, "image must be a torch.Tensor"),
        ({"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}, TypeError, "image must be of a floating dtype"),
        ({"image": torch.zeros(2, 3, 8, 8)}, ValueError, "image must be one image"),
        ({"image": torch.zeros(3, 0, 8)}, ValueError, "image must be one image"),
        ({"target": 4}, ValueError, r"target must be a class in 0..3, got 4"),
        ({"target": -1}, ValueError, "target must be a class"),
        ({"target": True}, ValueError, "target must be a class"),
        ({"patch": 0}, ValueError, "patch must be at least 1, got 0"),
        ({"patch": (2, 2, 2)}, ValueError, "patch must be"),
        ({"patch": 2.0}, TypeError, "patch must be"),
        ({"patch": (9, 4)}, ValueError, r"patch \(9, 4\) is larger than the image \(8, 8\)"),
        ({"stride": 3}, ValueError, "stride .* is larger than the patch"),
        ({"stride": 0}, ValueError, "stride must be"),
        ({"fill": "grey"}, TypeError, "fill must be a number"),
        ({"fill": [1.0, 2.0]}, ValueError, "fill must be a number, 3 numbers"),
        ({"layer": "conv9"}, ValueError, "layer 'conv9' is no submodule of the model; choose one of: 0, 1"),
        ({"layer": "3"}, ValueError, "layer '3' must give maps"),
        ({"layer": "1", "channel": 6}, ValueError, r"channel must be a map of 1 in 0..5, got 6"),
        ({"channel": 1}, ValueError, "channel 1 needs a layer"),
        ({"forward": 1j}, TypeError, "forward must be a function of the model and images, got 1j"),
        ({"target": torch.zeros(1, dtype=torch.int64, device="meta")}, ValueError, "target must be a class in 0"),
        ({"batch_size": 2**63}, ValueError, "batch_size must be at most 2147483647, got 9223372036854775808"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"model": nn.Conv2d(3, 2, 3)}, ValueError, "model must give logits"),
    ],
)
def test_wrong_calls_name_the_argument(change, error, words):
    call = {"model": small_net().float(), "image": torch.zeros(3, 8, 8), "target": 0, "patch": 2} | change
    with pytest.raises(error, match=words):
        occlusion_map(**call)


# What is made of a map


def test_the_map_is_projected_in_the_image_and_in_others():
    model, images = small_net().float(), torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    projected = occlusion.project_map(model, images[0], "1", 2, images[1:], ["a", "b"])
    assert [title for title, _, _ in projected] == ["this picture", "a", "b"]
    deconv = zf.Deconvnet(model)
    for image, (_, pixels, box) in zip(images, projected, strict=True):
        alone = deconv.project(image[None], "1", 2)
        assert torch.equal(pixels, alone.pixels[0])
        assert box == tuple(alone.boxes[0].tolist())
    alone = occlusion.project_map(deconv, images[0], "1", 2)
    assert len(alone) == 1
    assert torch.equal(alone[0][1], projected[0][1])


def test_the_table_and_the_figure_show_the_worst_window():
    model, image = small_net().float(), torch.randn(3, 20, 24, generator=torch.Generator().manual_seed(1))
    result = occlusion_map(model, image, 1, patch=8, stride=4, layer="1")
    classes, picture = ["a", "b", "c", "d"], torch.zeros(3, 20, 24, dtype=torch.uint8)
    row, column = divmod(int(result.probability.argmin()), result.probability.shape[1])
    top, left, bottom, right = result.boxes[row, column].tolist()
    clear, lowest, cells = occlusion.table(result, classes).splitlines()
    assert clear.endswith(f"{classes[result.clear_label]}; P(b) = {result.clear_probability:.4f}")
    assert lowest.endswith(f"with rows {top} to {bottom - 1}, columns {left} to {right - 1} covered")
    assert f"P = {float(result.probability.min()):.4f}" in lowest
    assert cells.endswith("4 x 5, raw")
    drawn = occlusion.figure(occlusion.Occluded("scene", picture, result), classes)
    titles = [axes.get_title() for axes in drawn.axes]
    assert [title[:3] for title in titles if title] == ["(a)", "(b)", "(c)", "(d)"]
    told = next(title for title in titles if title.startswith("(c)"))
    assert f"P(b),\n{result.clear_probability:.2f} when clear" in told
    worst = [patch.get_bbox().bounds for patch in drawn.axes[0].patches]
    assert worst == [(left, top, right - left, bottom - top)] * 2
    projected = occlusion.project_map(model, image, "1", result.channel)
    drawn = occlusion.figure(occlusion.Occluded("scene", picture, result, projected), classes)
    titles = [axes.get_title(side) for axes in drawn.axes for side in ("center", "left")]
    assert sorted(title[:3] for title in titles if title.startswith("(")) == ["(a)", "(b)", "(c)", "(d)", "(e)"]


@pytest.mark.parametrize("others", [0, 3])
def test_no_title_of_the_figure_lies_on_another_or_on_a_colour_bar(others):
    """With names that are long, as those of ImageNet's classes and of other packages' layers are."""
    model, image = small_net().float(), torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1))
    result = replace(occlusion_map(model, image, 1, patch=8, stride=4, layer="1"), layer="features.denseblock4.conv2")
    name = "a name that goes on and on and on and on"
    images = torch.randn(others, 3, 24, 24) if others else None
    projected = occlusion.project_map(model, image, "1", result.channel, images, [name] * others)
    picture = torch.zeros(3, 24, 24, dtype=torch.uint8)
    drawn = occlusion.figure(occlusion.Occluded(name, picture, result, projected), [name] * 4)
    drawn.canvas.draw()
    axes = [each for each in drawn.findobj(Axes) if each.axison]
    texts = [text for each in axes for text in (each.title, each._left_title) if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    bars = [each.get_window_extent() for each in axes if not each.get_title() and not each.get_title("left")]
    assert len(boxes) == 5 + others
    assert len(bars) == 2
    pairs = [*itertools.combinations(boxes, 2), *itertools.product(boxes, bars)]
    assert [pair for pair in pairs if pair[0].overlaps(pair[1])] == []
    assert all(box.x0 >= 0 and box.x1 <= drawn.bbox.width for box in boxes)


def covered_by_hand(forward, image, result, fill):
    """What `forward` gives for each window's whole covered image."""
    found = []
    for top, left, bottom, right in result.boxes.reshape(-1, 4).tolist():
        covered = image.clone()
        covered[:, top:bottom, left:right] = fill
        found.append(forward(covered[None])[0])
    return torch.stack(found).reshape(*result.boxes.shape[:2], -1)


class Gated(nn.Module):
    """A gate that sees the whole map, as squeeze and excitation has it."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.gate, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        x = self.convs[0](x)
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.fc(self.convs[2](x).relu().mean((2, 3)))


def test_whole_images_where_regions_would_be_whole(monkeypatch):
    net, image = nets.alive(Gated()), nets.images(1, 24, 24)[0]
    kinds = []
    monkeypatch.setattr(occlusion, "covering", lambda *a, made=covering.covering: kinds.append(made(*a)) or kinds[-1])
    result = occlusion_map(net, image, 1, patch=6, stride=6, fill=0.0)
    small = nets.alive(nn.Sequential(*Gated().convs, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)))
    occlusion_map(small, image, 1, patch=6, stride=6)
    assert [type(kind).__name__ for kind in kinds] == ["Copies", "Regions"]
    assert error(result.logit, covered_by_hand(net, image, result, 0.0)[..., 1].detach()) < 1e-12


def test_hooks_are_followed():
    net, image = nets.alive(Gated()), nets.images(1, 24, 24)[0]
    plain = nets.alive(nn.Sequential(*Gated().convs, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)))
    for model, module in ((net, net), (plain, plain), (plain, plain[0]), (net, net.convs[2])):
        with module.register_forward_hook(lambda module, args, output: output.flip(1) * 2):
            with pytest.warns(UserWarning, match="hooks"):
                result = occlusion_map(model, image, 1, patch=9, fill=0.5)
            expected = covered_by_hand(model, image, result, 0.5)[..., 1].detach()
        assert error(result.logit, expected) < 1e-12


def test_expressions_of_parameters_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
            self.t, self.gate = nn.Parameter(torch.rand(())), nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x):
            x = self.conv(x).relu() * torch.sigmoid(self.gate) + torch.tensor(0.1)
            return self.fc(x.mean((2, 3))) * self.t.exp()

    net, image = nets.alive(Net()), nets.images(1, 20, 20)[0]
    before = set(vars(net)) | set(dict(net.named_buffers()))
    result = occlusion_map(net, image, 1, patch=5, fill=0.0)
    assert error(result.logit, covered_by_hand(net, image, result, 0.0)[..., 1].detach()) < 1e-12
    assert set(vars(net)) | set(dict(net.named_buffers())) == before


def test_a_forward_of_ones_own():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Gated()

        def forward(self, x, scale):
            return {"out": self.net(x) * scale, "aux": x}

    net, image = nets.alive(Two()), nets.images(1, 24, 24)[0]
    own = lambda model, images: model(images, 3.0)["out"]  # noqa: E731
    result = occlusion_map(net, image, 1, forward=own, patch=8, fill=0.0, layer="net.convs.2")
    assert error(result.logit, covered_by_hand(lambda x: own(net, x), image, result, 0.0)[..., 1].detach()) < 1e-12
    assert result.activity is not None
    with pytest.raises(ValueError, match="forward="):
        occlusion_map(net.net, image, 1, forward=lambda model, images: {"out": model(images)})


@pytest.mark.parametrize(
    ("head", "classes"),
    [([], 1), ([], 3), ([nn.Sigmoid()], 1), ([nn.Sigmoid()], 3), ([nn.Softmax(1)], 3), ([nn.LogSoftmax(1)], 3)],
)
def test_probabilities_are_the_models(head, classes):
    """The sigmoid of one logit, the softmax of several, and what a model's own head gives."""
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)]
    net, image = nets.alive(nn.Sequential(*body, *head)), nets.images(1, 16, 16)[0]
    for target in (np.int64(classes - 1), torch.tensor(classes - 1)):
        result = occlusion_map(net, image, target, patch=4, fill=0.0)
    outputs = covered_by_hand(net, image, result, 0.0).detach()
    final = head[0] if head else None
    if isinstance(final, (nn.Sigmoid, nn.Softmax)):
        expected = outputs
    else:
        expected = outputs.sigmoid() if classes == 1 and final is None else outputs.softmax(-1)
    assert result.target == classes - 1
    assert error(result.probability, expected[..., classes - 1]) < 1e-12
    if classes == 1 and not head:
        assert torch.equal(result.label, (outputs[..., 0] > 0).long())


def test_a_fill_that_is_no_number():
    net, image = nets.alive(Gated()), nets.images(1, 24, 24)[0]
    for fill in (float("nan"), [0.0, float("inf"), 0.0]):
        with pytest.raises(ValueError, match="fill must be finite"):
            occlusion_map(net, image, 1, fill=fill)
