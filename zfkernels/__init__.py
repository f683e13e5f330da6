"""zfkernels: the system of Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", as kernels."""

from importlib.util import find_spec

from .backends import available_backends, use_backend
from .ops.contrast_norm import contrast_norm
from .ops.conv import conv2d_relu, relu_conv_transpose2d
from .ops.fused import conv2d_relu_max_pool2d, max_unpool2d_relu_conv_transpose2d
from .ops.max_pool import max_pool2d_with_switches, max_unpool2d_with_switches

__version__ = "0.1.0"

if find_spec("zfkernels.nn"):
    from . import nn
if find_spec("zfkernels.zfnet"):
    from .zfnet import ZFNet
if find_spec("zfkernels.deconvnet"):
    from .deconvnet import Deconvnet
if find_spec("zfkernels.occlusion"):
    from .occlusion import occlusion_map
if find_spec("zfkernels.activations"):
    from .activations import top_activations
