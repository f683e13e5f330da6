"""A unit and its projection: the one asked for, or the strongest."""

import pytest
import torch
from small import inputs, network, photographs

from zfkernels import Deconvnet
from zfkernels.analyses import projection


def test_the_unit_is_the_one_that_deconvnet_projects():
    model, x = network(), inputs(photographs(1))
    unit = projection.projection(model, x[0], "conv3", 2, (1, 0), method="guided")
    alone = Deconvnet(model).project(x, "conv3", 2, (1, 0), method="guided")
    assert (unit.layer, unit.channel, unit.position) == ("conv3", 2, (1, 0))
    assert unit.value == float(alone.values[0])
    assert unit.box == tuple(alone.boxes[0].tolist())
    assert torch.equal(unit.pixels, alone.pixels[0])


def test_by_default_the_unit_is_the_strongest():
    model, x = network(), inputs(photographs(1))
    maps = Deconvnet(model).activations(x, "conv4")[0]
    unit = projection.projection(model, x[0], "conv4")
    assert unit.value == pytest.approx(float(maps.max()), rel=1e-5)
    assert float(maps[unit.channel][unit.position]) == pytest.approx(unit.value, rel=1e-5)


@pytest.mark.parametrize(("layer", "views"), [("conv1", 4), ("conv5", 2)])
def test_the_table_says_what_the_unit_sees_and_the_figure_enlarges_it(layer, views):
    pixels = photographs(1)
    unit = projection.projection(network(), inputs(pixels)[0], layer)
    (row, column), (top, left, bottom, right) = unit.position, unit.box
    assert projection.table(unit).splitlines() == [
        f"unit        {layer}, map {unit.channel}, row {row}, column {column}",
        f"activation  {unit.value:.6g}",
        f"sees        rows {top} to {bottom - 1}, columns {left} to {right - 1} of the 48 x 48 input",
    ]
    assert (unit.box == (0, 0, 48, 48)) == (views == 2)
    assert len(projection.figure(unit, pixels[0]).axes) == views
