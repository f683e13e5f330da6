"""A small network and small photographs for the tests of the analyses."""

import torch

from zfkernels import ZFNet

SMALL = {"num_classes": 3, "image_size": 48, "channels": (6, 7, 8, 8, 5), "fc": (12, 10), "weight_std": None}
SMALL |= {"without": ("pool5",)}


def network(seed=0, **changes):
    torch.manual_seed(seed)
    return ZFNet(**SMALL | changes).eval()


def photographs(count=6, side=48):
    """Square views of scikit-image's photographs, uint8."""
    from zfkernels.data.photographs import CLASSES, Photographs

    source = Photographs(side, tuple(CLASSES)[:count])
    return torch.stack([source.view(i, (0, 0, *(min(p.shape[:2]),) * 2)) for i, p in enumerate(source.pixels)])


def inputs(pixels):
    return (pixels.float() - 120) / 60
