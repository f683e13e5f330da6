"""The end-to-end jobs: zfkernels' networks through the public API, and the same networks built of torch's layers."""

import copy
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zfkernels

from ..deconvnet.cones import Cones
from ..deconvnet.units import Units, at, strongest
from ..graph.rules import Rules
from ..graph.trace import trace
from ..models.zfnet import ZFNet, clamp_filters_
from . import checks
from .peers import LAST, Call, Case, Graph, Setting, in_float64
from .shapes import CONVS, POOLS
from .stacks import FLOPS, add_climb, add_descent, alone, climb, descend, empty_maps
from .torch_ops import in_whole

CHANNEL = 7  # the map of conv5 whose strongest unit is projected
ATLAS_IMAGES, ATLAS_TOP = 32, 9
ATLAS_CHECKED, ATLAS_CHUNK = 36, 16  # units whose dense projection is computed in float64; units a dense batch


@lru_cache(maxsize=1)
def network(device: str, dtype: torch.dtype) -> ZFNet:
    """The full ZFNet with He's weights. It is shared: nothing may train it."""
    torch.manual_seed(0)
    return ZFNet(weight_std=None, dropout=0.0, device=device, dtype=dtype).eval()


def twin(model: ZFNet, memory_format: torch.memory_format = LAST) -> nn.Sequential:
    """The same network of torch's own layers, sharing the weights where their memory format is the same."""
    layers: list[nn.Module] = []
    for row in model.table:
        layer, ours = row.layer, getattr(model, row.layer.name)
        if layer.kind == "conv":
            conv = nn.Conv2d(row.in_channels, row.channels, layer.kernel, layer.stride, layer.padding, device="meta")
            conv.weight = nn.Parameter(ours.weight.detach().contiguous(memory_format=memory_format))
            conv.bias = ours.bias
            layers += [conv, nn.ReLU(inplace=True)]
        elif layer.kind == "pool":
            layers.append(nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=layer.ceil_mode))
        elif layer.kind == "norm":
            layers.append(nn.LocalResponseNorm(ours.size, ours.alpha, ours.beta, ours.k))
        else:
            layers += [] if isinstance(layers[-1], nn.ReLU) and isinstance(layers[-2], nn.Linear) else [nn.Flatten()]
            linear = nn.Linear(1, 1, device="meta")
            linear.weight, linear.bias = ours.weight, ours.bias
            layers += [linear, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1]).train(model.training)


def logits(n: int, setting: Setting) -> Case:
    """Images to logits."""
    x, model = torch.randn(n, 3, 224, 224), network(setting.device, setting.dtype)
    fc = [getattr(model, name) for name in ("fc6", "fc7", "fc8")]
    flops = FLOPS + 2 * sum(layer.weight.numel() for layer in fc)
    traffic = x.nbytes + sum(p.nbytes for p in model.parameters()) + 1000 * n * setting.dtype.itemsize
    case = Case(setting, n, lambda: (twin(copy.deepcopy(model).double())(x.double()),), n * flops, traffic)
    last = x.contiguous(memory_format=LAST)

    def run(module: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor]:
        return (module(x),)

    case.add_ours(lambda: model(last))
    case.add_eager(lambda order: partial(run, twin(model, order), x.contiguous(memory_format=order)))
    case.add_compiled(lambda: partial(run, torch.compile(twin(model), dynamic=False, options={"freezing": True}), last))
    graph = add_climb(Graph(x=x), parameters(model), POOLS, keep_indices=False)
    graph.node("Flatten", [graph.value])
    for layer in fc:
        graph.node("Gemm", [graph.value, graph.constant(layer.weight), graph.constant(layer.bias)], transB=1)
        if layer is not fc[-1]:
            graph.node("Relu", [graph.value])
    return case.add_graph(graph)


def parameters(model: ZFNet) -> dict[int, tuple[Tensor, Tensor]]:
    """The weights and biases of the convolutions."""
    convs = {i: getattr(model, f"conv{i}") for i in CONVS}
    return {i: (conv.weight.detach(), conv.bias.detach()) for i, conv in convs.items()}


def project(n: int, setting: Setting) -> Case:
    """Images to conv5, and the projection of the strongest unit of one map of each."""
    x, model = torch.randn(n, 3, 224, 224), network(setting.device, setting.dtype)
    flat, maps = [t for pair in parameters(model).values() for t in pair], empty_maps(n)
    channels = torch.full((n,), CHANNEL)

    def dense(x: Tensor, channels: Tensor, map1: Tensor, map2: Tensor, *flat: Tensor) -> tuple[Tensor]:
        top, first, second = climb(x, *flat)
        return (descend(alone(top, channels), first, second, map1, map2, *flat),)

    right, traffic = in_float64(dense, x, channels, *maps, *flat), 2 * x.nbytes + sum(t.nbytes for t in flat)
    case = Case(setting, n, right, n * FLOPS, traffic, checks.projections)
    deconv, last = zfkernels.Deconvnet(model), x.contiguous(memory_format=LAST)
    case.add_ours(lambda: deconv.project(last, "conv5", CHANNEL).pixels)
    case.add_torch(dense, x, channels, *maps, *flat)
    graph = add_climb(Graph(x=x), parameters(model), (1, 2))
    indices, graph.indices = dict(zip((1, 2), graph.indices, strict=True)), []
    one = torch.zeros(1, CONVS[5].filters, 1, 1)
    one[0, CHANNEL] = 1
    chosen = graph.node("Mul", [graph.value, graph.constant(one)])
    largest = graph.node("ReduceMax", [chosen, graph.constant([1, 2, 3])], keepdims=1)
    here = graph.node("Cast", [graph.node("Equal", [chosen, largest])], to=1)
    graph.node("Mul", [chosen, here])
    return case.add_graph(add_descent(graph, parameters(model), n, indices))


def reverse(n: int, setting: Setting) -> Case:
    """The projection of one conv5 unit an image, from what the forward pass left: the unit, switches or indices."""
    x, model = torch.randn(n, 3, 224, 224), network(setting.device, setting.dtype)
    flat, maps = [t for pair in parameters(model).values() for t in pair], empty_maps(n)
    channels = torch.full((n,), CHANNEL)
    graph = trace(model)
    stop = graph.stop("conv5")
    engine, rules = Cones(graph, stop, graph.shapes(x.shape, stop)), Rules(setting.backend, "deconvnet")
    with torch.no_grad():
        run = engine.up(x.contiguous(memory_format=LAST), rules)
    units = Units(np.arange(n), channels.cpu().numpy(), np.zeros((n, 2), np.int64))
    units = units._replace(positions=strongest(run.value, units))
    values = at(run.value, units)

    def ours() -> tuple[Tensor]:
        pixels = torch.empty(x.shape, device=x.device, memory_format=LAST).zero_()
        engine.down(run, units, values, rules, list(pixels))
        return (pixels,)

    # The same switches for all, so that there is one right answer.
    switches = [record.switches for record in run.recorded.values() if getattr(record, "switches", None) is not None]
    first, second = (indices_of(i, one) for i, one in zip((1, 2), switches, strict=True))
    kept = alone(run.value, channels)

    def dense(g: Tensor, *others: Tensor) -> tuple[Tensor]:
        return (descend(g, *others),)

    right = in_float64(dense, kept, first, second, *maps, *flat)
    case = Case(setting, n, right, n * FLOPS, x.nbytes + sum(w.nbytes for w in flat))
    case.run["zfkernels"] = ours
    case.add_torch(dense, kept, first, second, *maps, *flat)
    written = Graph(x=kept, first=in_whole(POOLS[1], n, first), second=in_whole(POOLS[2], n, second))
    return case.add_graph(add_descent(written, parameters(model), n, {1: "first", 2: "second"}))


def indices_of(i: int, switches: Tensor) -> Tensor:
    """torch's indices from pool i's switches."""
    p, s = POOLS[i], switches.long()
    rows = torch.arange(p.out, device=s.device)[:, None] * p.stride + s // p.kernel
    return (rows * p.size + torch.arange(p.out, device=s.device) * p.stride + s % p.kernel).contiguous()


def atlas(maps: int, setting: Setting) -> Case:
    """For each of `maps` conv5 maps, the projections of the 9 of 32 images that excite it most: units/s.

    The peer climbs once, and descends in dense batches.
    """
    x, model = torch.randn(ATLAS_IMAGES, 3, 224, 224), network(setting.device, setting.dtype)
    flat = [t for pair in parameters(model).values() for t in pair]
    deconv, last = zfkernels.Deconvnet(model), x.contiguous(memory_format=LAST)
    index = deconv.activations(last, "conv5")[:, :maps].amax((2, 3)).topk(ATLAS_TOP, 0).indices.T.flatten()
    channels = torch.arange(maps).repeat_interleave(ATLAS_TOP)

    def dense(x: Tensor, map1: Tensor, map2: Tensor, *flat: Tensor, count: int = len(index)) -> tuple[Tensor]:
        top, first, second = climb(x, *flat)
        out = x.new_empty(count, *x.shape[1:])
        for start in range(0, count, ATLAS_CHUNK):
            chunk = slice(start, min(start + ATLAS_CHUNK, count))
            images, size = index[chunk], chunk.stop - start
            units = alone(top[images], channels[chunk])
            out[chunk] = descend(units, first[images], second[images], map1[:size], map2[:size], *flat)
        return (out,)

    empty = empty_maps(ATLAS_CHUNK)
    right = in_float64(partial(dense, count=ATLAS_CHECKED), x, *empty, *flat)
    case = Case(setting, maps, right, check=checks.projections, items=len(index))
    case.add_ours(lambda: deconv.project(last, "conv5", channels, image_index=index).pixels)
    case.add_torch(dense, x, *empty, *flat, compiled=False)
    case.missing |= {who: "no batch of units" for who in ("compile", "ort", "openvino") if setting.wants(who)}
    return case


# Training


def step(n: int, setting: Setting) -> Case:
    """A step of training the full ZFNet: forward, backward, SGD with momentum, the filters' clamp. No dropout."""
    return training(network(setting.device, setting.dtype), n, setting)


def small_step(n: int, setting: Setting) -> Case:
    """A step of the network that `zfkernels demo` trains."""
    from ..demo.network import CHANNELS, FEATURES, SIDE

    model = ZFNet(8, image_size=SIDE, channels=CHANNELS, fc=FEATURES, weight_std=None, dropout=0.0)
    return training(model, n, setting)


def training(model: ZFNet, n: int, setting: Setting) -> Case:
    """The rate is so small that all steps timed are the same; a result is the loss and the gradients of the first.

    The images are the same in each run: one in fifty has a window so near to a tie that a rounding moves its
    gradient by more than `checks.training_step` allows.
    """
    clamp_filters_(model)  # otherwise the first step alone would clamp, and move the weights
    seeded = torch.Generator().manual_seed(4)
    images = torch.randn(n, model.in_channels, *model.image_size, generator=seeded)
    labels = torch.randint(model.num_classes, (n,), generator=seeded)

    def stepping(module: nn.Module, images: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> Call:
        optimiser = torch.optim.SGD(module.parameters(), lr=1e-12, momentum=0.9)

        def run() -> tuple[Tensor | None, ...]:
            with torch.enable_grad(), zfkernels.use_backend(setting.backend):
                loss = F.cross_entropy((call or module)(images), labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                clamp_filters_(module)
                return loss.detach(), *(p.grad for p in module.parameters())

        return run

    def fresh(memory_format: torch.memory_format) -> nn.Sequential:
        return twin(copy.deepcopy(model).train(), memory_format)

    case = Case(
        setting,
        n,
        lambda: stepping(fresh(LAST).double(), images.double())(),
        check=checks.training_step,
        flops=n * 3 * FLOPS if model.image_size == (224, 224) else 0,
        bytes=images.nbytes + 5 * sum(p.nbytes for p in model.parameters()),
    )
    last = images.contiguous(memory_format=LAST)
    case.run["zfkernels"] = stepping(copy.deepcopy(model).train(), last)
    case.add_eager(lambda order: stepping(fresh(order), images.contiguous(memory_format=order)))

    def compiled() -> Call:
        module = fresh(LAST)
        return stepping(module, last, torch.compile(module, dynamic=False))

    case.add_compiled(compiled)
    return case
