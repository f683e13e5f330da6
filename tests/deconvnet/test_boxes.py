"""Boxes of maps against the whole maps that they are parts of."""

import numpy as np
import pytest
import torch

from zfkernels.deconvnet.boxes import Box, cut, fitted, summed, whole

SIZE = (7, 9)
SHAPE = torch.Size((4, 3, *SIZE))


def drawn(rng, size, own=True, margin=0):
    """Boxes of random numbers within maps of SIZE, or up to `margin` outside."""
    origins = np.stack([rng.integers(-margin, SIZE[a] - size[a] + margin + 1, 4) for a in (0, 1)], 1)
    return Box(torch.from_numpy(rng.standard_normal((4, 3, *size))), origins, own)


def pasted(box):
    """As whole maps, pixel by pixel."""
    maps = torch.zeros(SHAPE, dtype=torch.float64)
    for i, c, h, w in np.ndindex(*box.maps.shape):
        row, column = box.origins[i] + (h, w)
        if 0 <= row < SIZE[0] and 0 <= column < SIZE[1]:
            maps[i, c, row, column] = box.maps[i, c, h, w]
    return maps


@pytest.mark.parametrize("seed", range(20))
def test_a_sum_holds_both_and_leaves_no_map(seed):
    rng = np.random.default_rng(seed)
    sizes = [tuple(rng.integers(1, side + 1) for side in SIZE) for _ in range(2)]
    a, b = (drawn(rng, size, bool(rng.integers(2))) for size in sizes)
    if seed % 4 == 0:
        b = b._replace(origins=a.origins.clip(0, np.array(SIZE) - sizes[1]))
    kept = [box.maps.clone() for box in (a, b)]
    expected = pasted(a) + pasted(b)
    total = summed(a, b, SIZE)
    assert torch.equal(pasted(total), expected)
    assert torch.equal(whole(total, SHAPE), expected)
    assert (total.origins >= 0).all()
    assert (total.origins + total.maps.shape[2:] <= SIZE).all()
    for box, before in zip((a, b), kept, strict=True):
        assert box.own or torch.equal(box.maps, before)


@pytest.mark.parametrize("seed", range(40))
def test_a_fitted_box_holds_the_fields_and_no_more(seed):
    """Of the largest field's size, within the map, and 0 outside each unit's field."""
    rng = np.random.default_rng(seed)
    box = drawn(rng, tuple(rng.integers(1, side + 1) for side in SIZE), bool(seed % 2), margin=int(rng.integers(1, 5)))
    first = np.stack([rng.integers(0, side, 4) for side in SIZE], 1)
    last = np.minimum(first + rng.integers(1, 8, (4, 2)), SIZE)
    if seed % 5 == 0:
        box, first, last = (
            box._replace(origins=box.origins[:1].repeat(4, 0)),
            first[:1].repeat(4, 0),
            last[:1].repeat(4, 0),
        )
    kept, expected = box.maps.clone(), pasted(box)
    for i, ((top, left), (bottom, right)) in enumerate(zip(first, last, strict=True)):
        field = torch.zeros(SIZE, dtype=bool)
        field[top:bottom, left:right] = True
        expected[i] *= field
    inside = fitted(box, first, last, SIZE)
    assert torch.equal(pasted(inside), expected)
    assert (inside.origins >= 0).all()
    assert (inside.origins + inside.maps.shape[2:] <= SIZE).all()
    assert (inside.maps.shape[2:] <= (last - first).max(0)).all()
    assert box.own or torch.equal(box.maps, kept)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_cut_out_is_there(seed):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.standard_normal((2, 3, *SIZE)))
    size, images = tuple(int(rng.integers(1, side + 1)) for side in SIZE), rng.integers(0, 2, 4)
    origins = np.stack([rng.integers(-3, SIZE[a] - size[a] + 4, 4) for a in (0, 1)], 1)
    boxes = cut(maps, images, origins, size)
    for i, c, h, w in np.ndindex(4, 3, *size):
        row, column = origins[i] + (h, w)
        inside = 0 <= row < SIZE[0] and 0 <= column < SIZE[1]
        assert boxes[i, c, h, w] == (maps[images[i], c, row, column] if inside else 0)
