"""Who computes a case: zfkernels, torch eager in both memory formats, torch.compile, torch's fused oneDNN call, ONNX
Runtime and OpenVINO; autograd with other rules and Captum, where projections are compared.

All get the same numbers and as many threads, and all allocate their results in each call. What a peer can prepare once
(compiled code, packed weights) is ready before the clock starts.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import zfkernels

from .. import backends
from . import checks
from .shapes import Conv, Norm, Pool

LAST = torch.channels_last
FORMATS = {"nchw": torch.contiguous_format, "nhwc": LAST}
PEERS = ("eager", "compile", "onednn", "ort", "openvino", "autograd", "captum")
Outputs = tuple[Any, ...]  # tensors or arrays
Call = Callable[[], Outputs]
PACKAGES = {"ort": "onnxruntime", "openvino": "openvino"}


@dataclass
class Setting:
    """How a run is set up: zfkernels' backend, the threads, the peers, the seconds that torch.compile may take, the
    device and dtype, and the relative error that a right result may have."""

    backend: str = "cpu"
    threads: int = 2
    peers: tuple[str, ...] = PEERS  # peers, or single contenders ("eager nhwc")
    compile_seconds: float = 60.0  # for one case
    compile_total: float = 1800.0  # left for the run
    device: str = ""  # by default the backend's first
    dtype: torch.dtype = torch.float32  # ONNX Runtime and OpenVINO run float32 only
    bound: float = checks.BOUND

    def __post_init__(self) -> None:
        self.device = self.device or self.ours.DEVICES[0]

    @property
    def ours(self) -> ModuleType:
        return backends.module(self.backend)

    def wants(self, who: str) -> bool:
        return who in self.peers or who.split()[0] in self.peers

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


class Written(Protocol):
    """A model that can be written as ONNX."""

    def done(self) -> tuple[bytes, dict[str, np.ndarray]]: ...


@dataclass
class Case:
    """One job at one batch size. Each function of `run` returns a tuple of tensors or arrays for `check`."""

    setting: Setting
    n: int
    right: Callable[[], tuple[Tensor, ...]]  # in float64
    flops: int = 0  # floating-point operations a call, a convolution's counted as if done directly
    bytes: int = 0  # the least that a call reads and writes
    check: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], float] = checks.values
    checks: dict[str, checks.Check] = field(default_factory=dict)  # of single contenders, where theirs differs
    items: int = 0  # results of a call (0: n)
    name: str = ""
    run: dict[str, Call] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # contender: why it has no time

    def add_ours(self, call: Callable[[], Tensor]) -> None:
        def run() -> tuple[Tensor]:
            with zfkernels.use_backend(self.setting.backend):
                return (call(),)

        self.run["zfkernels"] = run

    def add_eager(self, build: Callable[[torch.memory_format], Call], label: str = "") -> None:
        for name, memory_format in FORMATS.items():
            who = " ".join(filter(None, ("eager", label, name)))
            if self.setting.wants(who):
                self.run[who] = build(memory_format)

    def add_torch(
        self, function: Callable[..., Outputs], *tensors: Tensor, label: str = "", compiled: bool = True
    ) -> None:
        """`function` on copies of the tensors in each memory format (biases as they are), and compiled."""
        self.add_eager(lambda memory_format: partial(function, *formatted(memory_format, tensors)), label)
        if compiled:
            self.add_compiled(lambda: partial(torch.compile(function, dynamic=False), *formatted(LAST, tensors)))

    def add_compiled(self, build: Callable[[], Call], who: str = "compile") -> None:
        """What `build` returns, a function whose first call compiles, within the time that is left for compiling."""
        import torch._inductor.config

        setting = self.setting
        if not setting.wants(who):
            return
        limit = min(setting.compile_seconds, setting.compile_total)
        if limit < 1:
            self.missing[who] = "the run's time for compiling is spent"
            return
        torch._dynamo.reset()  # the cases' functions share code, and torch.compile gives up on code seen too often
        start = time.monotonic()
        try:
            with time_limit(limit), torch._inductor.config.patch(compile_threads=1):
                run = build()
                run()
                run()
            self.run[who] = run
        except TimeUpError:
            self.missing[who] = f"not compiled within {limit:.0f} s"
        except Exception as error:  # whatever makes the compiler fail, the peer then has no time
            self.missing[who] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
        setting.compile_total -= time.monotonic() - start

    def add_onednn(self, c: Conv, x: Tensor, w: Tensor, b: Tensor) -> None:
        """torch's fused convolution and ReLU, the call that torch.compile makes, with weights packed in advance."""
        if self.setting.wants("onednn") and self.setting.device == "cpu" and torch.backends.mkldnn.is_available():
            window = [c.padding] * 2, [c.stride] * 2, [c.dilation] * 2, c.groups
            packed = torch.ops.mkldnn._reorder_convolution_weight(w, *window, list(x.shape))
            x = x.contiguous(memory_format=LAST)
            call = torch.ops.mkldnn._convolution_pointwise
            self.run["onednn"] = lambda: (call(x, packed, b, *window, "relu", [], ""),)

    def add_onednn_transposed(self, c: Conv, g: Tensor, w: Tensor) -> None:
        """torch's transposed convolution with weights packed in advance."""
        if self.setting.wants("onednn") and self.setting.device == "cpu" and torch.backends.mkldnn.is_available():
            window = [c.padding] * 2, [c.extra] * 2, [c.stride] * 2, [1, 1], 1
            packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(w, *window, list(g.shape))
            g = g.contiguous(memory_format=LAST)
            call = torch.ops.mkldnn._convolution_transpose_pointwise
            self.run["onednn"] = lambda: (call(g, packed, None, *window, "none", [], ""),)

    def add_graph(self, graph: Written) -> Case:
        """ONNX Runtime's and OpenVINO's sessions of the graph; the case itself."""
        model = None
        for who, start in (("ort", onnxruntime_session), ("openvino", openvino_session)):
            if not self.setting.wants(who) or self.setting.device != "cpu" or self.setting.dtype != torch.float32:
                continue
            if find_spec(PACKAGES[who]) is None or find_spec("onnx") is None:
                self.missing[who] = "not installed"
                continue
            model = model or graph.done()
            try:
                self.run[who] = start(*model, self.setting.threads)
            except RuntimeError as error:
                self.missing[who] = f"refuses the graph: {str(error).strip().splitlines()[-1][:120]}"
        return self


def in_float64(function: Callable[..., Outputs], *tensors: Tensor) -> Call:
    """The call of `function` on the tensors in float64, and on those of integers as they are."""
    return lambda: function(*(t.double() if t.is_floating_point() else t for t in tensors))


def formatted(memory_format: torch.memory_format, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in tensors]


class TimeUpError(BaseException):
    """No Exception, so that the compiler does not catch it with its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeUpError in the main thread after `seconds` within the block."""

    def stop(*_: object) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Graph:
    """A small ONNX model, written node by node. `value` names the last result; `indices` are outputs, too."""

    def __init__(self, **inputs: Tensor) -> None:
        self.inputs = inputs
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        self.constants: list[tuple[str, Tensor]] = []
        self.indices: list[str] = []
        self.value = "x"

    def name(self) -> str:
        return f"t{len(self.nodes)}_{len(self.constants)}"

    def constant(self, value: Tensor | list[int]) -> str:
        name = "c" + self.name()
        self.constants.append((name, torch.as_tensor(value).detach().contiguous()))
        return name

    def node(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        """Appends a node; the name of its first output, which becomes `value`."""
        out = [f"{self.name()}_{i}" for i in range(outputs)]
        self.nodes.append((kind, inputs, out, attributes))
        self.value = out[0]
        return self.value

    def conv(self, c: Conv, w: Tensor, b: Tensor) -> Graph:
        inputs = [self.value, self.constant(w), self.constant(b)]
        window: dict[str, Any] = {"strides": [c.stride] * 2, "pads": [c.padding] * 4, "dilations": [c.dilation] * 2}
        self.node("Conv", inputs, **window, group=c.groups)
        self.node("Relu", [self.value])
        return self

    def transposed(self, c: Conv, w: Tensor) -> Graph:
        window: dict[str, Any] = {"strides": [c.stride] * 2, "pads": [c.padding] * 4, "output_padding": [c.extra] * 2}
        self.node("ConvTranspose", [self.value, self.constant(w)], **window)
        return self

    def pool(self, p: Pool, keep_indices: bool = True) -> Graph:
        window: dict[str, Any] = {
            "kernel_shape": [p.kernel] * 2,
            "strides": [p.stride] * 2,
            "ceil_mode": int(p.ceil_mode),
        }
        self.node("MaxPool", [self.value], 2 if keep_indices else 1, **window)
        self.indices += [self.value[:-1] + "1"] if keep_indices else []
        return self

    def unpool(self, p: Pool, n: int, indices: str) -> None:
        """Appends the sum of the values at their indices, which count through the whole tensor of n images."""
        size = n * p.channels * p.size**2
        flat = self.node("Reshape", [self.value, self.constant([-1])])
        positions = self.node("Reshape", [indices, self.constant([-1])])
        zeros = self.constant(torch.zeros(size))
        summed = self.node("ScatterElements", [zeros, positions, flat], axis=0, reduction="add")
        self.node("Reshape", [summed, self.constant([n, p.channels, p.size, p.size])])

    def norm(self, s: Norm) -> Graph:
        self.node("LRN", [self.value], size=s.window, alpha=s.alpha, beta=s.beta, bias=s.k)
        return self

    def done(self) -> tuple[bytes, dict[str, np.ndarray]]:
        """The serialized model and its inputs as arrays."""
        from onnx import TensorProto, helper, numpy_helper

        kinds = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64}
        inputs = [helper.make_tensor_value_info(k, kinds[t.dtype], list(t.shape)) for k, t in self.inputs.items()]
        outputs = [helper.make_tensor_value_info(self.value, TensorProto.FLOAT, None)]
        outputs += [helper.make_tensor_value_info(k, TensorProto.INT64, None) for k in self.indices]
        nodes = [helper.make_node(kind, i, o, **attributes) for kind, i, o, attributes in self.nodes]
        constants = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in self.constants]
        graph = helper.make_graph(nodes, "case", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return model.SerializeToString(), {k: t.contiguous().numpy() for k, t in self.inputs.items()}


def onnxruntime_session(model: bytes, inputs: dict[str, np.ndarray], threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: tuple(session.run(None, inputs))


def openvino_session(model: bytes, inputs: dict[str, np.ndarray], threads: int) -> Call:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model=model), "CPU", settings)
    request = compiled.create_infer_request()
    shapes = [(tuple(port.shape), port.element_type.to_dtype()) for port in compiled.outputs]

    def run() -> Outputs:
        outputs = [np.empty(*shape) for shape in shapes]
        for i, output in enumerate(outputs):
            request.set_output_tensor(i, openvino.Tensor(output, shared_memory=True))
        request.infer(inputs, share_inputs=True, share_outputs=True)
        return tuple(outputs)

    return run
