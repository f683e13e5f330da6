"""Counts of dead, flat and checkered filters that were made so."""

import math

import pytest
import torch
from torch import nn

from zfkernels.analyses import filters


def test_dead_flat_and_checkered_filters_are_counted():
    rows, columns = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
    flat, checkered = torch.ones(7, 7), ((rows + columns) % 2 * 2 - 1).float()
    slanted = torch.cos(2 * math.pi * rows * 0.18)
    weight = torch.stack([flat, checkered, slanted, slanted.T, 1e-3 * flat])[:, None].expand(-1, 3, -1, -1).clone()
    found = filters.filters(weight)
    assert (found.dead, found.all_low, found.all_high) == (1, 1, 1)
    assert found.low[0] > 0.75 > 0.1 > found.high[0]
    assert found.high[1] > 0.75
    assert found.rms.tolist() == pytest.approx(weight.double().square().mean((1, 2, 3)).sqrt().tolist())
    assert found.largest == pytest.approx(float(found.rms.max() / found.rms.median()))
    assert "5 of 7x7     1" in filters.table({"net": found})
    with pytest.raises(ValueError, match="must be"):
        filters.filters(weight[0])


@pytest.mark.parametrize(("frequency", "low", "high"), [(0.125, 1, 0), (0.25, 0, 0), (0.5, 0, 0), (0.5625, 0, 1)])
def test_a_frequency_at_a_limit_is_neither_low_nor_high(frequency, low, high):
    """Of the Nyquist frequency; 32 rows hold whole waves of each."""
    wave = torch.cos(math.pi * frequency * torch.arange(32, dtype=torch.float64))[:, None].expand(-1, 32)
    found = filters.filters(wave[None, None])
    assert (round(float(found.low), 9), round(float(found.high), 9)) == (low, high)


def test_the_first_layer_with_filters_is_found():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 5), nn.Conv2d(4, 2, 3))
    assert torch.equal(filters.first_filters(model), model[1].weight)
    with pytest.raises(ValueError, match="Linear has no convolution"):
        filters.first_filters(nn.Linear(2, 2))


def test_a_row_a_network_is_drawn():
    results = {name: filters.filters(torch.randn(6, 3, side, side)) for name, side in (("a", 7), ("b", 3))}
    assert len(filters.figure(results).axes) == 6
