"""zfkernels: the system of Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", as kernels."""

from . import nn
from .analyses.activations import top_activations
from .analyses.occlusion import occlusion_map
from .analyses.sanity import sanity_check
from .backends import available_backends, use_backend, use_exact
from .deconvnet import Deconvnet
from .models.zfnet import ZFNet
from .ops.contrast_norm import contrast_norm
from .ops.conv import conv2d_relu, relu_conv_transpose2d
from .ops.fused import conv2d_relu_max_pool2d, max_pool2d_contrast_norm, max_unpool2d_relu_conv_transpose2d
from .ops.max_pool import max_pool2d_with_switches, max_unpool2d_with_switches

__version__ = "0.1.0"

__all__ = [
    "Deconvnet",
    "ZFNet",
    "available_backends",
    "contrast_norm",
    "conv2d_relu",
    "conv2d_relu_max_pool2d",
    "max_pool2d_contrast_norm",
    "max_pool2d_with_switches",
    "max_unpool2d_relu_conv_transpose2d",
    "max_unpool2d_with_switches",
    "nn",
    "occlusion_map",
    "relu_conv_transpose2d",
    "sanity_check",
    "top_activations",
    "use_backend",
    "use_exact",
]
