"""The public functions with arguments that are right, and a table of calls with one that is wrong."""

import math
import warnings

import torch

import zfkernels as zf
from zfkernels.backends import reference

X = torch.ones(2, 3, 8, 8)
W = torch.ones(4, 3, 3, 3)
B = torch.ones(4)
Y = torch.ones(2, 4, 6, 6)  # conv2d_relu(X, W)
P = torch.ones(2, 3, 4, 4)  # max_pool2d_with_switches(X, 2)
S = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
LP = torch.ones(2, 4, 3, 3)  # conv2d_relu_max_pool2d(X, W, B, 1, 0, 2, 2, 0, False)
LS = torch.zeros(2, 4, 3, 3, dtype=torch.uint8)
META = torch.device("meta")
UNHOLDABLE = "output_size must leave a map that some memory can hold"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # both are deprecated or prototypes, and still tensors that a user may hold
    QUANTIZED = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    NESTED = torch.nested.nested_tensor([X[0], X[1]])


def conv(x=X, weight=W, bias=B, **settings):
    return zf.conv2d_relu(x, weight, bias, **settings)


def pool(x=X, kernel_size=2, **settings):
    return zf.max_pool2d_with_switches(x, kernel_size, **settings)


def average(x=X, kernel_size=2, **settings):
    return zf.avg_pool2d(x, kernel_size, **settings)


def norm(x=X, **settings):
    return zf.contrast_norm(x, **settings)


def pool_norm(x=X, kernel_size=2, **settings):
    return zf.max_pool2d_contrast_norm(x, kernel_size, **settings)


def unpool(y=P, switches=S, kernel_size=2, output_size=8, **settings):
    return zf.max_unpool2d_with_switches(y, switches, kernel_size, output_size=output_size, **settings)


def deconv(y=Y, weight=W, output_size=8, **settings):
    return zf.relu_conv_transpose2d(y, weight, output_size=output_size, **settings)


def layer(x=X, weight=W, bias=B, pool_kernel=2, pool_stride=2, pool_padding=0, ceil_mode=False, **settings):
    settings = {"stride": 1, "padding": 0} | settings
    return zf.conv2d_relu_max_pool2d(
        x,
        weight,
        bias,
        pool_kernel=pool_kernel,
        pool_stride=pool_stride,
        pool_padding=pool_padding,
        ceil_mode=ceil_mode,
        **settings,
    )


def reverse(y=LP, switches=LS, weight=W, pool_kernel=2, pool_stride=2, pool_padding=0, output_size=8, **settings):
    settings = {"stride": 1, "padding": 0} | settings
    return zf.max_unpool2d_relu_conv_transpose2d(
        y,
        switches,
        weight,
        pool_kernel=pool_kernel,
        pool_stride=pool_stride,
        pool_padding=pool_padding,
        output_size=output_size,
        **settings,
    )


WRONG = [
    # groups, dilation, and what follows a convolution
    (
        "groups of 2 for 3 channels",
        conv,
        {"groups": 2},
        ValueError,
        "groups must divide x's 3 channels and weight's 4, got 2",
    ),
    ("no groups", conv, {"groups": 0}, ValueError, "groups must be at least 1, got 0"),
    ("half a group", conv, {"groups": 1.5}, TypeError, "groups must be an int, got 1.5"),
    (
        "weight of one group",
        conv,
        {"x": X[:, :2], "groups": 2},
        ValueError,
        "weight must have x's 2 channels in 2 groups as its second",
    ),
    ("dilation 0", conv, {"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
    (
        "dilation beyond the map",
        conv,
        {"dilation": (1, 4)},
        ValueError,
        "weight's window (3, 3) of dilation (1, 4) must fit into x's",
    ),
    ("groups of y", deconv, {"groups": 3}, ValueError, "groups must divide y's 4 channels and weight's 4, got 3"),
    ("dilation of y", deconv, {"dilation": "2"}, TypeError, "dilation must be an int or a pair of ints, got '2'"),
    (
        "add of another shape",
        conv,
        {"add": Y[:1]},
        ValueError,
        "add must have the result's shape, (2, 4, 6, 6), got (1, 4, 6, 6)",
    ),
    ("add of another dtype", conv, {"add": Y.double()}, TypeError, "add must have x's dtype, torch.float32, got"),
    ("add is a number", conv, {"add": 1.0}, TypeError, "add must be a torch.Tensor, got float"),
    ("cap 0", conv, {"cap": 0}, ValueError, "cap must be above 0, got 0.0"),
    ("cap is a string", conv, {"cap": "6"}, TypeError, "cap must be a number, got '6'"),
    # tensors
    ("x is a list", conv, {"x": [[1.0]]}, TypeError, "x must be a torch.Tensor, got list"),
    ("x is an array", pool, {"x": X.numpy()}, TypeError, "x must be a torch.Tensor, got ndarray"),
    ("x is None", norm, {"x": None}, TypeError, "x must be a torch.Tensor, got NoneType"),
    ("y is a number", deconv, {"y": 1.0}, TypeError, "y must be a torch.Tensor, got float"),
    ("weight is None", conv, {"weight": None}, TypeError, "weight must be a torch.Tensor, got NoneType"),
    ("bias is a number", conv, {"bias": 0.0}, TypeError, "bias must be a torch.Tensor, got float"),
    ("bias is False", layer, {"bias": False}, TypeError, "bias must be a torch.Tensor, got bool"),
    (
        "3-d x",
        conv,
        {"x": X[0]},
        ValueError,
        "x must have 4 dimensions (N, C_in, H, W), got shape (3, 8, 8); add a batch",
    ),
    ("5-d x", pool, {"x": X[None]}, ValueError, "x must have 4 dimensions (N, C, H, W), got shape (1, 2, 3, 8, 8)"),
    ("2-d x", norm, {"x": X[0, 0]}, ValueError, "x must have 4 dimensions (N, C, H, W), got shape (8, 8)"),
    ("3-d y", unpool, {"y": P[0]}, ValueError, "y must have 4 dimensions"),
    ("3-d weight", conv, {"weight": W[0]}, ValueError, "weight must have 4 dimensions (C_out, C_in, KH, KW)"),
    ("2-d bias", conv, {"bias": B[None]}, ValueError, "bias must have 1 dimensions (C_out), got shape (1, 4)"),
    (
        "integer x",
        conv,
        {"x": X.int()},
        TypeError,
        "x must have dtype float32, float64, bfloat16 or float16, got torch.int32",
    ),
    ("a photograph's bytes", pool, {"x": X.byte()}, TypeError, "x must have dtype float32"),
    ("complex x", norm, {"x": X.cfloat()}, TypeError, "x must have dtype"),
    ("bool y", deconv, {"y": Y.bool()}, TypeError, "y must have dtype"),
    ("float8 x", norm, {"x": X.to(torch.float8_e4m3fn)}, TypeError, "x must have dtype"),
    ("integer weight", conv, {"weight": W.long()}, TypeError, "weight must have dtype"),
    ("quantized x", pool, {"x": QUANTIZED}, TypeError, "x must have dtype"),
    (
        "weight of another dtype",
        conv,
        {"weight": W.double()},
        TypeError,
        "weight must have x's dtype, torch.float32, got",
    ),
    (
        "bias of another dtype",
        conv,
        {"bias": B.half()},
        TypeError,
        "bias must have x's dtype, torch.float32, got torch.float16",
    ),
    ("half y", deconv, {"y": Y.half()}, TypeError, "weight must have y's dtype, torch.float16, got torch.float32"),
    ("weight elsewhere", conv, {"weight": W.to(META)}, ValueError, "weight must be on x's device, cpu, got meta"),
    ("bias elsewhere", layer, {"bias": B.to(META)}, ValueError, "bias must be on x's device, cpu, got meta"),
    (
        "switches elsewhere",
        unpool,
        {"switches": S.to(META)},
        ValueError,
        "switches must be on y's device, cpu, got meta",
    ),
    (
        "sparse x",
        conv,
        {"x": X.to_sparse()},
        TypeError,
        "x must be a dense (strided) tensor, got layout torch.sparse_coo",
    ),
    ("sparse weight", deconv, {"weight": W.to_sparse()}, TypeError, "weight must be a dense (strided) tensor"),
    (
        "nested x",
        norm,
        {"x": NESTED},
        TypeError,
        "x must be a dense (strided) tensor",
    ),
    ("mkldnn x", conv, {"x": X.to_mkldnn()}, TypeError, "x must be a dense (strided) tensor, got layout torch._mkldnn"),
    # channels
    (
        "channels last in x",
        conv,
        {"x": X.permute(0, 2, 3, 1)},
        ValueError,
        "weight must have x's 8 channels as its second",
    ),
    (
        "weight of another depth",
        layer,
        {"weight": W[:, :2]},
        ValueError,
        "weight must have x's 3 channels as its second",
    ),
    (
        "torch's transposed weight",
        deconv,
        {"weight": W.transpose(0, 1)},
        ValueError,
        "weight must have y's 4 channels as its first",
    ),
    (
        "weight of too few filters",
        reverse,
        {"weight": W[:2]},
        ValueError,
        "weight must have y's 4 channels as its first",
    ),
    (
        "bias of another length",
        conv,
        {"bias": B[:3]},
        ValueError,
        "bias must have shape (4,), one value a filter, got (3,)",
    ),
    (
        "no channels",
        norm,
        {"x": X[:, :0]},
        ValueError,
        "x must not have an empty dimension other than N, got shape (2, 0, 8, 8)",
    ),
    ("no input channels", conv, {"x": X[:, :0], "weight": W[:, :0]}, ValueError, "x must not have an empty dimension"),
    ("no filters", conv, {"weight": W[:0], "bias": None}, ValueError, "weight must not have an empty dimension"),
    ("no rows", pool, {"x": X[:, :, :0]}, ValueError, "x must not have an empty dimension"),
    ("empty kernel", conv, {"weight": W[..., :0]}, ValueError, "weight must not have an empty dimension"),
    # the convolution's window
    ("stride 0", conv, {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ("negative stride", conv, {"stride": (1, -2)}, ValueError, "stride must be at least 1, got (1, -2)"),
    ("float stride", conv, {"stride": 2.0}, TypeError, "stride must be an int or a pair of ints, got 2.0"),
    ("NaN stride", conv, {"stride": math.nan}, TypeError, "stride must be an int or a pair of ints, got nan"),
    (
        "infinite stride",
        deconv,
        {"stride": (1, math.inf)},
        TypeError,
        "stride must be an int or a pair of ints, got (1, inf)",
    ),
    ("bool stride", conv, {"stride": True}, TypeError, "stride must be an int or a pair of ints, got True"),
    ("string stride", conv, {"stride": "2"}, TypeError, "stride must be an int or a pair of ints, got '2'"),
    ("no stride", conv, {"stride": None}, TypeError, "stride must be an int or a pair of ints, got None"),
    (
        "three strides",
        conv,
        {"stride": (1, 1, 1)},
        ValueError,
        "stride must be an int or a pair of ints (vertical, horizontal)",
    ),
    ("huge stride", conv, {"stride": 2**40}, ValueError, "stride must be at most 2147483647"),
    ("negative padding", conv, {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
    (
        "torch's named padding",
        conv,
        {"padding": "same"},
        TypeError,
        "padding must be an int or a pair of ints, got 'same'",
    ),
    ("four paddings", deconv, {"padding": (0, 1, 0, 1)}, ValueError, "padding must be an int or a pair of ints"),
    ("huge padding", layer, {"padding": 2**31}, ValueError, "padding must be at most 2147483647"),
    (
        "padding that no memory holds",
        conv,
        {"padding": 2**31 - 1},
        ValueError,
        "padding must leave a map that some memory can hold, got (2147483647, 2147483647)",
    ),
    (
        "padding that no memory holds for so many filters",
        conv,
        {"padding": 2**25 - 2, "weight": torch.ones(1024, 3, 1, 1), "bias": None},
        ValueError,
        "padding must leave a map that some memory can hold, got (33554430, 33554430)",
    ),
    (
        "stride beyond the map below a pool",
        layer,
        {"stride": (2**31 - 1, 5)},
        ValueError,
        "pool_kernel must fit into the convolution's map, (1, 2)",
    ),
    (
        "kernel beyond the map",
        conv,
        {"x": X[..., :2]},
        ValueError,
        "weight's window (3, 3) must fit into x's height and width (8, 2)",
    ),
    (
        "kernel beyond the padded map",
        layer,
        {"x": X[..., :1, :], "padding": (0, 1)},
        ValueError,
        "weight's window (3, 3)",
    ),
    # the average
    ("average of a list", average, {"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    ("average of integers", average, {"x": X.int()}, TypeError, "x must have dtype"),
    ("average of a 3-d x", average, {"x": X[0]}, ValueError, "x must have 4 dimensions (N, C, H, W)"),
    ("average over 0", average, {"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
    ("average at stride 0", average, {"stride": (1, 0)}, ValueError, "stride must be at least 1, got (1, 0)"),
    (
        "average with too much padding",
        average,
        {"kernel_size": 3, "padding": 2},
        ValueError,
        "padding must be at most half of kernel_size, (3, 3), got (2, 2)",
    ),
    ("average over more than the map", average, {"kernel_size": 9}, ValueError, "kernel_size must fit into x's"),
    ("average with ceil_mode 1", average, {"ceil_mode": 1}, TypeError, "ceil_mode must be True or False, got 1"),
    (
        "average with count_include_pad None",
        average,
        {"count_include_pad": None},
        TypeError,
        "count_include_pad must be True or False, got None",
    ),
    (
        "average on no such backend",
        average,
        {"backend": "fastest"},
        ValueError,
        "backend must be one of reference, cpu, triton, cuda, got 'fastest'",
    ),
    # the pooling's window
    (
        "no kernel_size",
        pool,
        {"kernel_size": None},
        TypeError,
        "kernel_size must be an int or a pair of ints, got None",
    ),
    ("kernel_size 0", pool, {"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
    (
        "float kernel_size",
        unpool,
        {"kernel_size": 2.5},
        TypeError,
        "kernel_size must be an int or a pair of ints, got 2.5",
    ),
    (
        "one-element kernel_size",
        pool,
        {"kernel_size": (2,)},
        ValueError,
        "kernel_size must be an int or a pair of ints",
    ),
    (
        "tensor kernel_size",
        pool,
        {"kernel_size": torch.tensor(2)},
        TypeError,
        "kernel_size must be an int or a pair of ints",
    ),
    ("window over 256", pool, {"kernel_size": (16, 17)}, ValueError, "kernel_size must cover at most 256 pixels"),
    ("window of 257", pool, {"kernel_size": (257, 1)}, ValueError, "kernel_size must cover at most 256 pixels"),
    ("layer's window over 256", layer, {"pool_kernel": 17}, ValueError, "pool_kernel must cover at most 256 pixels"),
    ("pool stride 0", pool, {"stride": 0}, ValueError, "stride must be at least 1, got 0"),
    ("layer's pool stride", layer, {"pool_stride": -1}, ValueError, "pool_stride must be at least 1, got -1"),
    (
        "pool padding over half",
        pool,
        {"kernel_size": 3, "padding": 2},
        ValueError,
        "padding must be at most half of kernel_size",
    ),
    (
        "layer's pool padding",
        layer,
        {"pool_padding": 2},
        ValueError,
        "pool_padding must be at most half of pool_kernel",
    ),
    ("negative pool padding", pool, {"padding": (0, -1)}, ValueError, "padding must be at least 0"),
    (
        "pool beyond the map",
        pool,
        {"kernel_size": 9},
        ValueError,
        "kernel_size must fit into x's height and width, (8, 8), with padding (0, 0): no window does; got (9, 9)",
    ),
    (
        "layer's pool beyond the map",
        layer,
        {"pool_kernel": 7},
        ValueError,
        "pool_kernel must fit into the convolution's map, (6, 6), with padding (0, 0): no window does; got (7, 7)",
    ),
    ("pool and norm: an array", pool_norm, {"x": X.numpy()}, TypeError, "x must be a torch.Tensor, got ndarray"),
    ("pool and norm: kernel_size 0", pool_norm, {"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
    ("pool and norm: no window", pool_norm, {"kernel_size": 9}, ValueError, "kernel_size must fit into x's"),
    ("pool and norm: size 0", pool_norm, {"size": 0}, ValueError, "size must be from 1 to"),
    ("pool and norm: k 0", pool_norm, {"k": 0}, ValueError, "k must be above 0, got 0"),
    ("pool and norm: center", pool_norm, {"center": 1}, TypeError, "center must be True or False, got 1"),
    ("pool and norm: ceil_mode", pool_norm, {"ceil_mode": 0}, TypeError, "ceil_mode must be True or False, got 0"),
    ("ceil_mode is a number", pool, {"ceil_mode": 1}, TypeError, "ceil_mode must be True or False, got 1"),
    ("ceil_mode is None", layer, {"ceil_mode": None}, TypeError, "ceil_mode must be True or False, got None"),
    # switches
    ("torch's indices", unpool, {"switches": S.long()}, TypeError, "switches must have dtype uint8"),
    ("float switches", reverse, {"switches": LS.float()}, TypeError, "switches must have dtype uint8"),
    ("no switches", unpool, {"switches": None}, TypeError, "switches must be a torch.Tensor, got NoneType"),
    (
        "switches of another shape",
        unpool,
        {"switches": S[..., :3]},
        ValueError,
        "switches must have y's shape, (2, 3, 4, 4)",
    ),
    ("switches of one image", reverse, {"switches": LS[:1]}, ValueError, "switches must have y's shape, (2, 4, 3, 3)"),
    ("sparse switches", unpool, {"switches": S.to_sparse()}, TypeError, "switches must be a dense (strided) tensor"),
    # output_size
    (
        "no output_size",
        unpool,
        {"output_size": None},
        TypeError,
        "output_size must be an int or a pair of ints, got None",
    ),
    (
        "negative output_size",
        deconv,
        {"output_size": (8, -8)},
        ValueError,
        "output_size must be at least 1, got (8, -8)",
    ),
    (
        "float output_size",
        deconv,
        {"output_size": 8.0},
        TypeError,
        "output_size must be an int or a pair of ints, got 8.0",
    ),
    ("whole shape", unpool, {"output_size": X.shape}, ValueError, "output_size must be an int or a pair of ints"),
    ("too large", deconv, {"output_size": 9}, ValueError, "from (8, 8) to (8, 8), got (9, 9)"),
    ("too small", deconv, {"output_size": 7}, ValueError, "output_size must be the size of an input from which"),
    (
        "smaller than the kernel",
        deconv,
        {"output_size": 2},
        ValueError,
        "output_size must be the size of an input from which",
    ),
    (
        "unpool too large",
        unpool,
        {"output_size": 10},
        ValueError,
        "output_size must be a size from which pooling makes y's (4, 4)",
    ),
    (
        "unpool too small",
        unpool,
        {"output_size": 6},
        ValueError,
        "output_size must be a size from which pooling makes y's (4, 4)",
    ),
    (
        "layer too large",
        reverse,
        {"output_size": 12},
        ValueError,
        "output_size must be a size from which pooling makes y's (3, 3)",
    ),
    ("layer below the kernel", reverse, {"output_size": (8, 2)}, ValueError, "output_size must be at least"),
    # one that no memory holds, of a stride or a dilation from which it may be
    (
        "transposed beyond memory",
        deconv,
        {"stride": 2**28, "output_size": 5 * 2**28 + 3},
        ValueError,
        f"{UNHOLDABLE}, got (1342177283, 1342177283)",
    ),
    (
        "transposed, dilated beyond memory",
        deconv,
        {"dilation": 2**29, "output_size": 2**30 + 6},
        ValueError,
        UNHOLDABLE,
    ),
    ("unpooled beyond memory", unpool, {"stride": 2**28, "output_size": 3 * 2**28 + 2}, ValueError, UNHOLDABLE),
    ("layer unpooled beyond memory", reverse, {"pool_stride": 2**28, "output_size": 2**29 + 4}, ValueError, UNHOLDABLE),
    ("rectify is a number", deconv, {"rectify": 1}, TypeError, "rectify must be True or False, got 1"),
    ("rectify is a string", reverse, {"rectify": "no"}, TypeError, "rectify must be True or False, got 'no'"),
    # the norm's numbers
    ("size 0", norm, {"size": 0}, ValueError, "size must be from 1 to 2147483647, got 0"),
    ("negative size", norm, {"size": -5}, ValueError, "size must be from 1"),
    ("float size", norm, {"size": 5.0}, TypeError, "size must be an int, got 5.0"),
    ("bool size", norm, {"size": True}, TypeError, "size must be an int, got True"),
    ("huge size", norm, {"size": 2**31}, ValueError, "size must be from 1 to 2147483647"),
    ("NaN alpha", norm, {"alpha": math.nan}, ValueError, "alpha must be finite, got nan"),
    ("negative alpha", norm, {"alpha": -1e-4}, ValueError, "alpha must be at least 0, got -0.0001"),
    ("alpha too large for a float", norm, {"alpha": 10**400}, ValueError, "alpha must be finite"),
    ("infinite beta", norm, {"beta": math.inf}, ValueError, "beta must be finite, got inf"),
    ("no beta", norm, {"beta": None}, TypeError, "beta must be a number, got None"),
    ("tensor alpha", norm, {"alpha": torch.tensor(0.1)}, TypeError, "alpha must be a number"),
    ("infinite k", norm, {"k": -math.inf}, ValueError, "k must be finite, got -inf"),
    ("k 0", norm, {"k": 0}, ValueError, "k must be above 0, got 0.0"),
    ("string k", norm, {"k": "2"}, TypeError, "k must be a number, got '2'"),
    ("center is a number", norm, {"center": 0}, TypeError, "center must be True or False, got 0"),
    # backends
    (
        "unknown backend",
        conv,
        {"backend": "gpu"},
        ValueError,
        "backend must be one of reference, cpu, triton, cuda, got 'gpu'",
    ),
    ("backend is a module", pool, {"backend": reference}, TypeError, "backend must be a str or None, got module"),
    (
        "backend that is not there",
        norm,
        {"backend": "triton"},
        RuntimeError,
        "backend 'triton' cannot run here: its module cannot be imported",
    ),
]
