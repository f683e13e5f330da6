"""The fraction of features whose change differs in sign, against its formula."""

import json

import numpy as np
import pytest
import torch
from small import inputs, network, photographs

from zfkernels import Deconvnet
from zfkernels.analyses import correspondence
from zfkernels.data.parts import read_parts, to_input


def test_delta_against_its_formula():
    changes = torch.tensor([[1.0, -2.0, 0.0, 3.0], [2.0, 5.0, 0.0, 1.0], [0.0, -1.0, 1.0, -4.0]])
    signs = changes.sign().tolist()
    total = sum(
        sum(a != b for a, b in zip(signs[i], signs[j], strict=True)) for i in range(3) for j in range(3) if i != j
    )
    found = correspondence.sign_disagreement(changes)
    assert found.delta == pytest.approx(total / (3 * 2 * 4))
    assert found.per_image.tolist() == pytest.approx([4 / 8, 5 / 8, 7 / 8])
    assert found.deviation == pytest.approx(np.std([4 / 8, 5 / 8, 7 / 8], ddof=1))


def test_identical_images_correspond_wholly_and_opposite_changes_not_at_all():
    one = inputs(photographs(1))
    box = [(10, 8, 26, 30)] * 4
    found = correspondence.correspondence(network(), one.expand(4, -1, -1, -1), {"part": box}, ["conv5", "fc7"])
    assert found["conv5"]["part"].delta == found["fc7"]["part"].delta == 0
    x = torch.randn(1, 50)
    assert correspondence.sign_disagreement(torch.cat([x, -x])).delta == 1


def test_hiding_a_part_changes_the_features_that_the_table_counts():
    model, x = network(), inputs(photographs(4))
    parts = {"a": [(0, 0, 12, 14), (5, 6, 20, 20), (30, 30, 48, 48), (1, 2, 30, 9)]}
    parts["random"] = correspondence.random_boxes(parts, (48, 48), seed=3)
    sizes = [[(b - t, r - left) for t, left, b, r in boxes] for boxes in parts.values()]
    assert sizes[0] == sizes[1]
    assert parts["random"] == correspondence.random_boxes({"a": parts["a"]}, (48, 48), seed=3)
    found = correspondence.correspondence(model, x, parts, ["conv3"], fill=0.25)
    hidden = x.clone()
    for i, (t, left, b, r) in enumerate(parts["a"]):
        hidden[i, :, t:b, left:r] = 0.25
    deconv = Deconvnet(model)
    changes = (deconv.activations(x, "conv3") - deconv.activations(hidden, "conv3")).flatten(1)
    assert found["conv3"]["a"].delta == correspondence.sign_disagreement(changes).delta > 0
    text = correspondence.table(found)
    assert "part hidden" in text
    assert f"{found['conv3']['random'].delta:.3f} ±" in text
    with pytest.raises(ValueError, match="must have a box for each of 4 images, got 1"):
        correspondence.correspondence(model, x, {"a": parts["a"][:1]}, ["conv3"])
    with pytest.raises(ValueError, match="outside images"):
        correspondence.correspondence(model, x, {"a": [(0, 0, 49, 3)] * 4}, ["conv3"])


def test_boxes_follow_the_picture_into_the_input():
    assert to_input((10, 20, 30, 60), (100, 100), (50, 50)) == (5, 10, 15, 30)
    assert to_input((0, 50, 100, 150), (100, 200), (50, 50)) == (0, 0, 50, 50)
    assert to_input((0, 0, 10, 10), (100, 200), (50, 50)) == (0, 0, 5, 1)  # cut away but for the edge


EYES = {"eye": [0, 0, 4, 4]}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "0 pictures with 0 parts; at least 2 are compared in 1 part"),
        ([EYES], "1 pictures with 1 parts"),
        ([{}, {}], "2 pictures with 0 parts"),
        ([{"random": [0, 0, 4, 4]}] * 2, "no part may be named 'random'"),
        ([EYES, {"eye": [4, 0, 4, 4]}], r"the box of 'eye' in .*1\.png must be .* within its 8 x 9 pixels"),
        ([EYES, {"eye": [0, 5, 4, 4]}], "the box of 'eye'"),
        ([EYES, {"eye": [-1, 0, 4, 4]}], "the box of 'eye'"),
        ([EYES, {"eye": [0, 0, 8, 10]}], r"got \[0, 0, 8, 10\]"),
        ([EYES, {"eye": [0, 0, float("inf"), 4]}], "cannot convert float infinity"),
        ([EYES, {"eye": [0.5, 0, 4, 4]}], "a box must be of whole numbers"),
        ([EYES, {"eye": ["0", "0", "4", "4"]}], "a box must be of whole numbers"),
        ([EYES, {"nose": [0, 0, 4, 4]}], "the same parts"),
        ([[], []], "with the same parts"),
    ],
)
def test_boxes_that_cannot_be_are_named_with_their_file(tmp_path, parts, words):
    image = pytest.importorskip("PIL.Image")
    for i in range(2):
        image.new("RGB", (9, 8)).save(tmp_path / f"{i}.png")
    listed = [{"image": f"{i}.png", "parts": boxes} for i, boxes in enumerate(parts)]
    (tmp_path / "parts.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=words) as raised:
        read_parts(tmp_path / "parts.json", (8, 8))
    assert str(tmp_path / "parts.json") in str(raised.value)
    good = [{"image": f"{i}.png", "parts": {"eye": [0, 0, 8, 9]}} for i in range(2)]
    (tmp_path / "parts.json").write_text(json.dumps(good))
    assert read_parts(tmp_path / "parts.json", (8, 8))[1] == {"eye": [(0, 0, 8, 8)] * 2}
