"""Tensors as pictures, their scale, and pictures side by side."""

import numpy as np
import pytest
import torch

from zfkernels.drawing.tiles import beside, cut, frame, full_scale, signed_picture, tile, zoom_to


def test_frames_keep_the_size_inside_the_image():
    assert frame((10, 20, 17, 27), 7, (96, 96)) == (10, 20, 17, 27)
    assert frame((0, 90, 6, 96), 7, (96, 96)) == (0, 89, 7, 96)
    assert frame((0, 3, 80, 96), 107, (96, 90)) == (0, 0, 96, 90)
    assert frame((0, 89, 6, 96), (7, 12), (96, 96)) == (0, 84, 7, 96)


def test_pictures_are_symmetric_around_grey_and_tiles_lie_row_by_row():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(3, 1, 5)
    assert signed_picture(values, 1.0)[0, :, 0].tolist() == [1, 1, 128, 255, 255]
    assert signed_picture(values * 0, 0.0)[0, :, 0].tolist() == [128] * 5
    a, b, c = (np.full((1, 2, 3), value, np.uint8) for value in (10, 20, 30))
    sheet = tile([a, b, c], columns=2, zoom=2, gap=1)
    assert sheet.shape == (5, 9, 3)
    assert (sheet[0:2, 0:4] == 10).all()
    assert (sheet[0:2, 5:9] == 20).all()
    assert (sheet[3:5, 0:4] == 30).all()
    assert (sheet[2] == 255).all()
    assert cut(np.arange(12).reshape(3, 4), (1, 2, 3, 4)).tolist() == [[6, 7], [10, 11]]


@pytest.mark.parametrize("kind", ["even", "heavy", "zeros", "rows", "few", "sampled"])
def test_the_full_scale_of_many_values_is_torchs_quantile(kind):
    """Whatever every sixteenth value is like."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(3, 120, 160, generator=generator)
    if kind == "heavy":
        values = values**7
    elif kind == "zeros":
        values[:, 2:] = 0
    elif kind == "rows":
        values[..., ::16] = 0
    elif kind == "few":
        values[..., 1::16] *= 1000
        values[..., ::16] *= 5
    elif kind == "sampled":
        values[..., ::16] *= 1000
    expected = float(values.double().abs().flatten().quantile(0.995))
    assert full_scale([values[:, :70], values[:, 70:]]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_one_value_in_200_lies_beyond_the_full_scale(dtype):
    values = torch.arange(201, dtype=dtype) * torch.tensor([1, -1], dtype=dtype).repeat(101)[:201]
    assert full_scale([values[:70].view(7, 10), values[70:].view(1, 131)]) == 199
    assert full_scale([torch.zeros(3, 2, 2, dtype=dtype)]) == 0
    scaled = values.double() / 7  # the scale is as accurate as the values
    assert full_scale([scaled]) == 199 / 7
    assert full_scale([scaled.float()]) == float(np.float32(199 / 7)) != 199 / 7


def test_a_zoom_is_whole_and_nearest_and_at_least_1():
    assert [zoom_to(side, 48) for side in (7, 11, 27, 33, 99, 200)] == [7, 4, 2, 1, 1, 1]


def test_pictures_beside_each_other_have_a_white_gutter():
    left, right = np.full((2, 3, 3), 10, np.uint8), np.full((2, 1, 3), 20, np.uint8)
    assert beside(left, right, 2)[..., 0].tolist() == [[10, 10, 10, 255, 255, 20]] * 2
