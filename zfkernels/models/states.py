"""State dicts as people save them, brought to a module's own names; and what of one does not fit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "model_state", "net", "network", "module", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema"),
)
# In front of every name: DataParallel's, and those of a model that is an attribute of another
PREFIXES = ("module.", "model.", "net.", "network.")
INSIDE = (
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)  # of what was compiled or wrapped, or a part of it
UNNEEDED = ("n_averaged",)  # torch.optim.swa_utils counts with it


def fitted(content: object, module: nn.Module) -> dict[str, Any]:
    """The state dict in `content`, under the module's names where a usual wrapper or prefix is all that differs.

    Raises:
        ValueError: it holds no state dict; the words go behind the file's name.
    """
    state = unwrapped(content)
    expected = {name for name in module.state_dict() if not _may_lack(name)}
    for _ in range(4):
        if expected <= state.keys():
            return state
        parts = [{name[len(p) :]: v for name, v in state.items() if name.startswith(p)} for p in PREFIXES]
        parts.append(_without(state, INSIDE))
        whole = [part for part in parts if expected <= part.keys()]
        same = [part for part in parts if len(part) == len(state) and part.keys() != state.keys()]
        if not (whole or same):
            break
        state = (whole or same)[0]
    return state


def unwrapped(content: object) -> dict[str, Any]:
    """The state dict in {"state_dict": ...}, {"model": ...} and the like, or `content` if it is one.

    Raises:
        ValueError: it is none; the words go behind the file's name.
    """
    for _ in range(4):
        if not isinstance(content, Mapping):
            raise ValueError(f"holds a {type(content).__name__}, not a state dict or a zfkernels checkpoint")
        inner = [content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = inner[0]
    assert isinstance(content, Mapping)
    names = [name for name in content if name not in UNNEEDED]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("holds a dict whose keys are no names, not a state dict")
    return {name: content[name] for name in names}


def misfit(state: Mapping[str, Any], module: nn.Module) -> str | None:
    """The first missing key, unexpected key and other shape of a state dict; None if it fits."""
    expected, learned = module.state_dict(), {name for name, _ in module.named_parameters()}
    missing = [name for name in expected if name not in state and not _may_lack(name)]
    unexpected = [name for name in state if name not in expected]
    words = []
    if missing:
        words.append(f"it lacks {missing[0]!r}{_more(missing)}")
    if unexpected:
        words.append(f"it holds {unexpected[0]!r}{_more(unexpected)}, which the network has not")
    for name in () if words else expected:
        value, wanted = state.get(name), expected[name]
        if name not in state or not isinstance(wanted, Tensor):
            continue
        if not isinstance(value, Tensor):
            return f"{name!r} is a {type(value).__name__}, not a tensor"
        if value.shape != wanted.shape:
            return f"{name!r} has shape {tuple(value.shape)}, and {tuple(wanted.shape)} in the network"
        if problem := unusable(value, wanted.is_floating_point(), name in learned):
            return f"{name!r} {problem}"
    return "; ".join(words) or None


def unusable(value: Tensor, floating: bool, finite: bool) -> str | None:
    """Why no network can have these numbers, if so; they must be floating-point, or finite, if that is said."""
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        kind = "meta" if value.is_meta else "quantised" if value.is_quantized else "sparse"
        return f"is a {kind} tensor; save ordinary ones"
    if floating and not value.is_floating_point():
        return f"holds numbers of {value.dtype}, and the network's are floating-point"
    if floating and finite and not torch.isfinite(value).all():
        return "holds NaN or infinite numbers, as after a training that diverged; take an earlier checkpoint"
    return None


def _may_lack(name: str) -> bool:
    """Whether an old torch did not save it."""
    return name.endswith("num_batches_tracked")


def _without(state: Mapping[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    def cleaned(name: str) -> str:
        for part in parts:
            name = name.replace(part, "")
        return name

    return {cleaned(name): value for name, value in state.items()}


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
