"""What each op is compared with: zfkernels itself, torch eager in both memory formats, ONNX Runtime, OpenVINO.

`make(name, n, backend, ...)` builds one `Case`: a function without arguments for each contender, the right answer in
float64, and how much work one call is. All of them see the same numbers and the same count of threads. zfkernels and
torch allocate their results in each call; ONNX Runtime allocates from its arena, OpenVINO writes into its own buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from shapes import CONVS, NORMS, POOLS, Conv, Norm, Pool

from zfkernels import backends

aten = torch.ops.aten
LAST = torch.channels_last
FORMATS = {"nchw": torch.contiguous_format, "nhwc": LAST}
CAN_EXPORT = find_spec("onnx") is not None
PEERS = ("eager", "ort", "openvino")


@dataclass
class Case:
    """One op at one batch size. Each function of `run` returns a tuple of tensors or arrays to compare with `right`."""

    name: str
    n: int
    right: tuple[torch.Tensor, ...]
    flops: int = 0
    bytes: int = 0
    run: dict[str, Callable[[], tuple]] = field(default_factory=dict)
    # Contenders that are compared only where no two windows chose the same pixel: they keep one value, we sum.
    ignores_collisions: tuple[str, ...] = ()
    collisions: torch.Tensor | None = None


def names() -> list[str]:
    """Every case name, in the order of the network."""
    convs = [f"{op}{i}" for op in ("conv", "convt", "wgrad") for i in CONVS]
    pools = [f"{op}{i}" for op in ("pool", "unpool", "poolgrad", "unpoolgrad") for i in POOLS]
    norms = [f"{op}{i}" for op in ("norm", "normtrain") for i in NORMS]
    layers = [f"{op}{i}" for op in ("fused", "unfused") for i in POOLS]
    return [*convs, *pools, *norms, *layers, *PATHS]


def make(
    name: str,
    n: int,
    backend: str = "cpu",
    threads: int = 2,
    peers: tuple[str, ...] = PEERS,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Case:
    """The case of that name at batch size n, with the contenders that are installed and asked for.

    The same arguments give the same numbers, whatever the backend. ONNX Runtime and OpenVINO run in float32 on the CPU.
    """
    torch.manual_seed(0)
    ours = backends.module(backend)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if name in PATHS:
                case, graph = PATHS[name](n, ours)
            else:
                op = name.rstrip("0123456789")
                case, graph = MAKERS[op](int(name[len(op) :]), n, ours)
    finally:
        torch.set_default_dtype(before)
    case.name = name
    case.run = {who: run for who, run in case.run.items() if not who.startswith("eager") or "eager" in peers}
    if graph is not None and CAN_EXPORT:
        for who, start in (("ort", onnxruntime_session), ("openvino", openvino_session)):
            if who in peers and find_spec("onnxruntime" if who == "ort" else who) is not None:
                run = start(graph, threads)
                if run is not None:
                    case.run[who] = run
    return case


def eager(case: Case, function: Callable[..., tuple], *tensors: torch.Tensor, label: str = "eager") -> None:
    """Adds `function` on copies of the tensors in each memory format (biases as they are)."""
    for name, memory_format in FORMATS.items():
        copies = [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in tensors]
        case.run[f"{label} {name}"] = lambda copies=copies: function(*copies)


def weights(c: Conv) -> tuple[torch.Tensor, torch.Tensor]:
    scale = (2 / (c.channels * c.kernel**2)) ** 0.5
    return torch.randn(c.filters, c.channels, c.kernel, c.kernel) * scale, torch.randn(c.filters) * 0.1


def conv(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    c = CONVS[i]
    x, (w, b) = torch.randn(n, c.channels, c.size, c.size), weights(c)
    right = F.relu(F.conv2d(x.double(), w.double(), b.double(), c.stride, c.padding))
    case = Case("", n, (right,), flops=n * c.flops)
    last = x.contiguous(memory_format=LAST)
    stride, padding = (c.stride,) * 2, (c.padding,) * 2
    case.run["zfkernels"] = lambda: (ours.conv2d(last, w, b, stride, padding, True),)
    eager(case, lambda x, w, b: (F.relu_(F.conv2d(x, w, b, c.stride, c.padding)),), x, w, b)
    graph = Graph(x=x)
    graph.conv(c, w, b)
    return case, graph.done()


def convt(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    """The convolution's input gradient: transposed, with the same filters, onto the input's size."""
    c = CONVS[i]
    g, (w, _) = torch.randn(n, c.filters, c.out, c.out), weights(c)
    size = (c.size, c.size)
    extra = c.size - ((c.out - 1) * c.stride - 2 * c.padding + c.kernel)
    right = F.conv_transpose2d(g.double(), w.double(), None, c.stride, c.padding, extra)
    case = Case("", n, (right,), flops=n * c.flops)
    last = g.contiguous(memory_format=LAST)
    stride, padding = (c.stride,) * 2, (c.padding,) * 2
    case.run["zfkernels"] = lambda: (ours.conv_transpose2d(last, w, stride, padding, size, False),)
    eager(case, lambda g, w: (F.conv_transpose2d(g, w, None, c.stride, c.padding, extra),), g, w)
    x = torch.empty(n, c.channels, *size)
    eager(case, lambda g, x, w: conv_backward(c, g, x, w, (True, False, False))[:1], g, x, w, label="eager backward")
    graph = Graph(x=g)
    graph.node(
        "ConvTranspose", [graph.value, graph.constant(w)], strides=stride, pads=padding * 2, output_padding=[extra] * 2
    )
    return case, graph.done()


def wgrad(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    c = CONVS[i]
    x, g, (w, _) = torch.randn(n, c.channels, c.size, c.size), torch.randn(n, c.filters, c.out, c.out), weights(c)
    _, gw, gb = conv_backward(c, g.double(), x.double(), w.double(), (False, True, True))
    case = Case("", n, (gw, gb), flops=n * c.flops)
    last = x.contiguous(memory_format=LAST), g.contiguous(memory_format=LAST)
    kernel, stride, padding = (c.kernel,) * 2, (c.stride,) * 2, (c.padding,) * 2
    case.run["zfkernels"] = lambda: ours.conv2d_weight_grad(*last, kernel, stride, padding, True)
    eager(case, lambda g, x, w: conv_backward(c, g, x, w, (False, True, True))[1:], g, x, w)
    return case, None


def conv_backward(c: Conv, g, x, w, mask: tuple[bool, bool, bool]) -> tuple:
    stride, padding = [c.stride] * 2, [c.padding] * 2
    return aten.convolution_backward(g, x, w, [c.filters], stride, padding, [1, 1], False, [0, 0], 1, mask)


def pooled(p: Pool, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.max_pool2d(x, p.kernel, p.stride, ceil_mode=p.ceil_mode, return_indices=True)


def switches_of(p: Pool, indices: torch.Tensor) -> torch.Tensor:
    """Our switches (offset inside the window) from torch's indices (position in the map)."""
    rows = torch.arange(p.out)[:, None] * p.stride
    columns = torch.arange(p.out)[None, :] * p.stride
    offset = (indices // p.size - rows) * p.kernel + indices % p.size - columns
    return offset.to(torch.uint8).contiguous(memory_format=LAST)


def scattered(p: Pool, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The values summed at their indices: the right unpooling."""
    n, c = values.shape[:2]
    flat = values.new_zeros(n, c, p.size * p.size).scatter_add_(2, indices.flatten(2), values.flatten(2))
    return flat.view(n, c, p.size, p.size)


def pool(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    p = POOLS[i]
    x = torch.randn(n, p.channels, p.size, p.size)
    y, indices = (t.to(x.device) for t in pooled(p, x.cpu()))  # on GPUs another than the first maximum may win
    case = Case("", n, (y, switches_of(p, indices)), bytes=4 * x.numel() + 5 * y.numel())
    last = x.contiguous(memory_format=LAST)
    kernel, stride, out = (p.kernel,) * 2, (p.stride,) * 2, (p.out, p.out)
    case.run["zfkernels"] = lambda: ours.max_pool2d(last, kernel, stride, (0, 0), out)
    eager(case, lambda x: pooled(p, x), x)
    graph = Graph(x=x)
    graph.pool(p)
    return case, graph.done()


def unpool(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    """Unpooling by switches. torch's and ONNX Runtime's keep one value where windows meet: checked everywhere else."""
    p = POOLS[i]
    case, g, indices = unpooling(p, n, ours)
    size = (p.size, p.size)
    eager(case, lambda g, indices: (F.max_unpool2d(g, indices, p.kernel, p.stride, output_size=size),), g, indices)
    eager(case, lambda g, indices: (scattered(p, g, indices),), g, indices, label="eager scatter_add")
    claims = scattered(p, torch.ones_like(g), indices)
    case.collisions = claims > 1
    full = (p.out - 1) * p.stride + p.kernel  # ONNX Runtime takes no smaller map, so an overhang is cut off after
    planes = torch.arange(n * p.channels).view(n, p.channels, 1, 1) * full**2
    graph = Graph(x=g, indices=planes + indices // p.size * full + indices % p.size)
    shape = graph.constant(torch.tensor([n, p.channels, full, full]))
    graph.node("MaxUnpool", ["x", "indices", shape], kernel_shape=[p.kernel] * 2, strides=[p.stride] * 2)
    if full > p.size:
        graph.node("Slice", [graph.value, *(graph.constant(torch.tensor(v)) for v in ([0, 0], [*size], [2, 3]))])
    case.ignores_collisions = ("eager nchw", "eager nhwc", "ort", "openvino")
    return case, graph.done()


def poolgrad(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    """Max-pooling's backward: the same kernel of ours as the unpooling, against the backward of torch's pooling."""
    p = POOLS[i]
    case, g, indices = unpooling(p, n, ours)
    kernel, stride = [p.kernel] * 2, [p.stride] * 2

    def backward(g, x, indices):
        grad = aten.max_pool2d_with_indices_backward
        return (grad(g, x, kernel, stride, [0, 0], [1, 1], p.ceil_mode, indices),)

    eager(case, backward, g, torch.empty(n, p.channels, p.size, p.size), indices)
    return case, None


def unpooling(p: Pool, n: int, ours) -> tuple[Case, torch.Tensor, torch.Tensor]:
    _, indices = pooled(p, torch.randn(n, p.channels, p.size, p.size))
    g = torch.randn(indices.shape)
    right = scattered(p, g.double(), indices)
    case = Case("", n, (right,), bytes=4 * right.numel() + 5 * g.numel())
    last, switches = g.contiguous(memory_format=LAST), switches_of(p, indices)
    kernel, stride, size = (p.kernel,) * 2, (p.stride,) * 2, (p.size, p.size)
    case.run["zfkernels"] = lambda: (ours.max_unpool2d(last, switches, kernel, stride, (0, 0), size),)
    return case, g, indices


def unpoolgrad(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    p = POOLS[i]
    g = torch.randn(n, p.channels, p.size, p.size)
    _, indices = pooled(p, torch.randn_like(g))

    def gathered(g: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor]:
        return (g.flatten(2).gather(2, indices.flatten(2)).view(indices.shape),)

    case = Case("", n, gathered(g, indices), bytes=9 * indices.numel())
    last, switches = g.contiguous(memory_format=LAST), switches_of(p, indices)
    kernel, stride = (p.kernel,) * 2, (p.stride,) * 2
    case.run["zfkernels"] = lambda: (ours.max_unpool2d_backward(last, switches, kernel, stride, (0, 0)),)
    eager(case, gathered, g, indices)
    return case, None


def normalized(s: Norm, x: torch.Tensor) -> torch.Tensor:
    return F.local_response_norm(x, s.window, s.alpha, s.beta, s.k)


def norm(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    s = NORMS[i]
    x = torch.randn(n, s.channels, s.size, s.size) * 30
    case = Case("", n, (normalized(s, x.double()),), bytes=8 * x.numel())
    last = x.contiguous(memory_format=LAST)
    case.run["zfkernels"] = lambda: (ours.contrast_norm(last, s.window, s.alpha, s.beta, s.k, False),)
    eager(case, lambda x: (normalized(s, x),), x)
    graph = Graph(x=x)
    graph.norm(s)
    return case, graph.done()


def normtrain(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    """Forward and backward."""
    s = NORMS[i]
    x, g = torch.randn(2, n, s.channels, s.size, s.size) * 30

    def train(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = normalized(s, x)
            return y.detach(), torch.autograd.grad(y, x, g)[0]

    def run() -> tuple[torch.Tensor, ...]:
        constants = s.window, s.alpha, s.beta, s.k, False
        return ours.contrast_norm(last_x, *constants), ours.contrast_norm_backward(last_g, last_x, *constants)

    last_x, last_g = x.contiguous(memory_format=LAST), g.contiguous(memory_format=LAST)
    case = Case("", n, train(x.double(), g.double()), bytes=20 * x.numel())
    case.run["zfkernels"] = run
    eager(case, train, x, g)
    return case, None


def fused(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    """convolution + bias + ReLU + pooling with switches, the whole layer."""
    c, p = CONVS[i], POOLS[i]
    x, (w, b) = torch.randn(n, c.channels, c.size, c.size), weights(c)
    right, _ = pooled(p, F.relu(F.conv2d(x.double(), w.double(), b.double(), c.stride, c.padding)))
    case = Case("", n, (right,), flops=n * c.flops)
    last = x.contiguous(memory_format=LAST)
    where = (c.stride,) * 2, (c.padding,) * 2, (p.kernel,) * 2, (p.stride,) * 2, (0, 0), (p.out, p.out)
    case.run["zfkernels"] = lambda: ours.conv2d_relu_max_pool2d(last, w, b, *where)
    eager(case, lambda x, w, b: pooled(p, F.relu_(F.conv2d(x, w, b, c.stride, c.padding))), x, w, b)
    graph = Graph(x=x)
    graph.conv(c, w, b)
    graph.pool(p)
    return case, graph.done()


def unfused(i: int, n: int, ours) -> tuple[Case, bytes | None]:
    """The layer run backwards: unpooling by switches + ReLU + transposed convolution."""
    c, p = CONVS[i], POOLS[i]
    _, indices = pooled(p, torch.randn(n, p.channels, p.size, p.size))
    y, (w, _) = torch.randn(indices.shape), weights(c)
    extra = c.size - ((c.out - 1) * c.stride - 2 * c.padding + c.kernel)

    def reverse(y: torch.Tensor, indices: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor]:
        return (F.conv_transpose2d(F.relu_(scattered(p, y, indices)), w, None, c.stride, c.padding, extra),)

    case = Case("", n, reverse(y.double(), indices, w.double()), flops=n * c.flops)
    last, switches = y.contiguous(memory_format=LAST), switches_of(p, indices)
    where = (c.stride,) * 2, (c.padding,) * 2, (p.kernel,) * 2, (p.stride,) * 2, (0, 0), (c.size, c.size)
    case.run["zfkernels"] = lambda: (ours.max_unpool2d_relu_conv_transpose2d(last, switches, w, *where, True),)
    eager(case, reverse, y, indices, w)
    return case, None


def forward(n: int, ours) -> tuple[Case, bytes | None]:
    """ZFNet's five convolutional layers, from the images to pool5, with every pooling's switches."""
    x, parameters = torch.randn(n, 3, 224, 224), {i: weights(c) for i, c in CONVS.items()}

    def torch_forward(x: torch.Tensor, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept = []
        for i, c in CONVS.items():
            w, b = flat[2 * i - 2], flat[2 * i - 1]
            x = F.relu_(F.conv2d(x, w, b, c.stride, c.padding))
            if i in POOLS:
                x, indices = pooled(POOLS[i], x)
                kept.append(indices)
            if i in NORMS:
                x = normalized(NORMS[i], x)
        return x, *kept

    def run() -> tuple[torch.Tensor, ...]:
        value, kept = last, []
        for i, c in CONVS.items():
            w, b = parameters[i]
            stride, padding = (c.stride,) * 2, (c.padding,) * 2
            if i in POOLS:
                p = POOLS[i]
                where = (p.kernel,) * 2, (p.stride,) * 2, (0, 0), (p.out, p.out)
                value, switches = ours.conv2d_relu_max_pool2d(value, w, b, stride, padding, *where)
                kept.append(switches)
            else:
                value = ours.conv2d(value, w, b, stride, padding, True)
            if i in NORMS:
                s = NORMS[i]
                value = ours.contrast_norm(value, s.window, s.alpha, s.beta, s.k, False)
        return value, *kept

    flat = [t for pair in parameters.values() for t in pair]
    right = torch_forward(x.double(), *(t.double() for t in flat))[:1]
    case = Case("", n, right, flops=n * sum(c.flops for c in CONVS.values()))
    last = x.contiguous(memory_format=LAST)
    case.run["zfkernels"] = run
    eager(case, torch_forward, x, *flat)
    graph = Graph(x=x)
    for i, c in CONVS.items():
        graph.conv(c, *parameters[i])
        if i in POOLS:
            graph.pool(POOLS[i])
        if i in NORMS:
            graph.norm(NORMS[i])
    return case, graph.done()


def reverse(n: int, ours) -> tuple[Case, bytes | None]:
    """The deconvnet's way back, from pool5 to the pixels: each layer's unpooling, rectifier, transposed convolution."""
    parameters = {i: weights(c)[0] for i, c in CONVS.items()}
    indices = {i: pooled(p, torch.randn(n, p.channels, p.size, p.size))[1] for i, p in POOLS.items()}
    y = torch.randn(indices[5].shape).relu()

    def torch_reverse(y: torch.Tensor, *flat: torch.Tensor) -> tuple[torch.Tensor]:
        weights, kept = dict(zip(CONVS, flat, strict=False)), dict(zip(POOLS, flat[len(CONVS) :], strict=True))
        for i, c in reversed(CONVS.items()):
            if i in POOLS:
                y = scattered(POOLS[i], y, kept[i])
            extra = c.size - ((c.out - 1) * c.stride - 2 * c.padding + c.kernel)
            y = F.conv_transpose2d(F.relu(y), weights[i], None, c.stride, c.padding, extra)
        return (y,)

    def run() -> tuple[torch.Tensor]:
        value = last
        for i, c in reversed(CONVS.items()):
            where = (c.stride,) * 2, (c.padding,) * 2
            if i in POOLS:
                window = (POOLS[i].kernel,) * 2, (POOLS[i].stride,) * 2, (0, 0), (c.size,) * 2
                value = ours.max_unpool2d_relu_conv_transpose2d(
                    value, switches[i], parameters[i], *where, *window, True
                )
            else:
                value = ours.conv_transpose2d(value, parameters[i], *where, (c.size,) * 2, True)
        return (value,)

    right = torch_reverse(y.double(), *(w.double() for w in parameters.values()), *indices.values())
    case = Case("", n, right, flops=n * sum(c.flops for c in CONVS.values()))
    last = y.contiguous(memory_format=LAST)
    switches = {i: switches_of(p, indices[i]) for i, p in POOLS.items()}
    case.run["zfkernels"] = run
    eager(case, torch_reverse, y, *parameters.values(), *indices.values())
    return case, None


PATHS = {"forward": forward, "reverse": reverse}
MAKERS = {
    "conv": conv,
    "convt": convt,
    "wgrad": wgrad,
    "pool": pool,
    "unpool": unpool,
    "poolgrad": poolgrad,
    "unpoolgrad": unpoolgrad,
    "norm": norm,
    "normtrain": normtrain,
    "fused": fused,
    "unfused": unfused,
}


class Graph:
    """A small ONNX model, written node by node. `value` names the last result; pooling indices are outputs too."""

    def __init__(self, **inputs: torch.Tensor):
        self.inputs, self.nodes, self.constants, self.indices = inputs, [], [], []
        self.value = "x"

    def name(self) -> str:
        return f"t{len(self.nodes)}_{len(self.constants)}"

    def constant(self, tensor: torch.Tensor) -> str:
        name = "c" + self.name()
        self.constants.append((name, tensor))
        return name

    def node(self, kind: str, inputs: list[str], outputs: int = 1, **attributes) -> None:
        out = [f"{self.name()}_{i}" for i in range(outputs)]
        self.nodes.append((kind, inputs, out, attributes))
        self.value = out[0]
        self.indices += out[1:]

    def conv(self, c: Conv, w: torch.Tensor, b: torch.Tensor) -> None:
        inputs = [self.value, self.constant(w), self.constant(b)]
        self.node("Conv", inputs, strides=[c.stride] * 2, pads=[c.padding] * 4)
        self.node("Relu", [self.value])

    def pool(self, p: Pool) -> None:
        window = {"kernel_shape": [p.kernel] * 2, "strides": [p.stride] * 2, "ceil_mode": int(p.ceil_mode)}
        self.node("MaxPool", [self.value], 2, **window)

    def norm(self, s: Norm) -> None:
        self.node("LRN", [self.value], size=s.window, alpha=s.alpha, beta=s.beta, bias=s.k)

    def done(self) -> tuple[bytes, dict[str, np.ndarray]] | None:
        """The serialized model and its inputs as arrays; None without the onnx package, or the CPU and float32."""
        if not CAN_EXPORT or any(t.is_cuda or t.dtype in (torch.bfloat16, torch.float16) for t in self.inputs.values()):
            return None
        from onnx import TensorProto, helper, numpy_helper

        kinds = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64}
        inputs = [helper.make_tensor_value_info(k, kinds[t.dtype], list(t.shape)) for k, t in self.inputs.items()]
        outputs = [helper.make_tensor_value_info(self.value, TensorProto.FLOAT, None)]
        outputs += [helper.make_tensor_value_info(k, TensorProto.INT64, None) for k in self.indices]
        nodes = [helper.make_node(kind, i, o, **attributes) for kind, i, o, attributes in self.nodes]
        constants = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in self.constants]
        graph = helper.make_graph(nodes, "case", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return model.SerializeToString(), {k: t.numpy() for k, t in self.inputs.items()}


def onnxruntime_session(graph: tuple[bytes, dict[str, np.ndarray]], threads: int) -> Callable[[], tuple] | None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    model, inputs = graph
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def openvino_session(graph: tuple[bytes, dict[str, np.ndarray]], threads: int) -> Callable[[], tuple] | None:
    """None where OpenVINO cannot convert the graph (it has no MaxUnpool)."""
    import openvino

    model, inputs = graph
    core = openvino.Core()
    try:
        read = core.read_model(model=model)
    except RuntimeError:
        return None
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    outputs = len(read.outputs)

    def run() -> tuple:
        done = request.infer(inputs, share_inputs=True, share_outputs=True)
        return tuple(done[i] for i in range(outputs))

    return run
