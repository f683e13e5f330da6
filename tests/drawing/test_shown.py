"""What results show of themselves: a short repr, a figure, a file, HTML for a notebook."""

from html import escape as html_escape

import pytest
import torch
from small import network, photographs

import zfkernels as zf
from zfkernels.analyses.activations import top_activations
from zfkernels.analyses.occlusion import occlusion_map
from zfkernels.drawing import shown

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def results():
    net, pictures = network(0), photographs(6, 48)
    images = (pictures.float() - 120) / 60
    deconv = zf.Deconvnet(net)
    return {
        "Projection": deconv.project(images, "conv3", 2),
        "Joint": deconv.joint(images[0], "conv3", [0, 1, 2], [(0, 0), (1, 1), (1, 0)]),
        "TopActivations": top_activations(deconv, [images], "conv3", 5),
        "OcclusionMap": occlusion_map(net, images[0], patch=9, stride=8),
        "with a layer": occlusion_map(net, images[0], patch=9, stride=8, layer="conv5"),
    }


@pytest.mark.parametrize("name", ["Projection", "Joint", "TopActivations", "OcclusionMap", "with a layer"])
def test_a_result_shows_itself(results, tmp_path, name, monkeypatch):
    result = results[name]
    assert len(repr(result)) < 200
    assert "tensor(" not in repr(result)
    assert repr(result).startswith(type(result).__name__ + "(")
    result.save(tmp_path / "deeper" / "it.png")
    with Image.open(tmp_path / "deeper" / "it.png") as picture:
        assert len(picture.convert("L").getcolors(2**16)) > 10
    html = result._repr_html_()
    assert html.startswith('<figure><img src="data:image/png;base64,')
    assert html.count(html_escape(repr(result))) == 2

    def without(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(shown, "new_figure", without)
    if name in ("Projection", "Joint", "TopActivations"):
        assert result._repr_html_() is None


def test_what_a_repr_says(results):
    p, top, cells = results["Projection"], results["TopActivations"], results["OcclusionMap"]
    assert "6 x 3 x 48 x 48 pixels" in repr(p)
    assert f"{float(p.values.max()):.4g}" in repr(p)
    assert ("note" in repr(p)) == bool(p.notes)
    assert f"5 of each of {len(top.values)} maps" in repr(top)
    assert f"{cells.clear_probability:.4g} when clear" in repr(cells)
    assert shown.span(torch.tensor([2.0, 2.0])) == "2"
    assert shown.span(torch.tensor([])) == "none"


def test_pictures_stand_below_their_projections(results):
    drawn = results["Projection"].plot(photographs(6, 48))
    axes = [a for a in drawn.axes if a.images]
    assert len(axes) == 12
    assert [a.get_title() for a in axes[:6]] == [f"activation {v:.4g}" for v in results["Projection"].values.tolist()]
    assert (axes[7].images[0].get_array() == photographs(6, 48)[1].permute(1, 2, 0).numpy()).all()


def test_many_projections_are_cut_to_the_first(results):
    p = results["Projection"]
    many = type(p)(*(value.repeat(5, *[1] * (value.ndim - 1)) for value in p[:4]))
    assert len([a for a in many.plot().axes if a.images]) == shown.MOST
    empty = type(p)(*(value[:0] for value in p[:4]))
    assert "values none" in repr(empty)
    assert not [a for a in empty.plot().axes if a.images]
