"""The variants of the architecture, and the runner that trains them alike."""

import torch

from zfkernels import ZFNet
from zfkernels.analyses import ablation
from zfkernels.data.folders import Memory
from zfkernels.training.recipe import Plan
from zfkernels.training.run import Run


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
