"""What users can write does not change by accident: every public name, signature and option is in surface.json.

After a change that is meant, `python tests/test_surface.py > tests/surface.json` rewrites the record; review its diff.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import zfkernels as zf
from zfkernels import cli

RECORD = Path(__file__).with_name("surface.json")
REWRITE = "python tests/test_surface.py > tests/surface.json"
PACKAGE = zf.__name__
MODULE_PREFIX = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")
Json = dict[str, Any]


def test_the_public_surface_is_the_recorded_one() -> None:
    differences = list(compare(json.loads(RECORD.read_text()), json.loads(json.dumps(surface()))))
    assert not differences, "\n".join([f"the public surface changed; if that is meant: {REWRITE}", *differences])


def test_the_comparison_names_what_is_missing_added_or_different() -> None:
    before = {"f": {"signature": "(x)"}, "g": {"fields": ["a", "b"]}, "h": {}}
    after = {"f": {"signature": "(x, y)"}, "g": {"fields": ["a", "b"]}, "i": {}}
    assert list(compare(before, after)) == [
        "different  f / signature\n    recorded   (x)\n    now        (x, y)",
        "missing    h",
        "added      i",
    ]


def compare(before: Json, after: Json, path: tuple[str, ...] = ()) -> Iterator[str]:
    """A line for each entry that is missing from `after`, added to it, or different in it."""
    for name in sorted(before.keys() | after.keys()):
        here = (*path, name)
        where = " / ".join(here)
        if name not in after:
            yield f"missing    {where}"
        elif name not in before:
            yield f"added      {where}"
        elif isinstance(before[name], dict) and isinstance(after[name], dict):
            yield from compare(before[name], after[name], here)
        elif before[name] != after[name]:
            yield f"different  {where}\n    recorded   {before[name]}\n    now        {after[name]}"


def surface() -> Json:
    """All that is recorded: names with their signatures, the fields of the results, the commands' options."""
    results: Json = {}
    api = {name: described(getattr(zf, name), results) for name in sorted(zf.__all__)}
    return {
        "api": api,
        "attributes": {name: attributes(example) for name, example in examples().items()},
        "results": dict(sorted(results.items())),
        "commands": commands(cli.parser()),
    }


# Names and signatures


def described(thing: object, results: Json) -> Json:
    """The kind of a public name, its signature, and a class's public methods and properties."""
    if inspect.ismodule(thing):
        classes = {name: value for name, value in vars(thing).items() if public(name) and is_ours(value)}
        return {"kind": "module", "classes": {name: described(classes[name], results) for name in sorted(classes)}}
    if inspect.isclass(thing):
        return {"kind": "class", "signature": constructor(thing, results), "members": members(thing, results)}
    return {"kind": "function", "signature": signature(thing, results)}


def public(name: str) -> bool:
    return not name.startswith("_")


def is_ours(thing: object) -> bool:
    """Whether `thing` is a class that this package defines."""
    return inspect.isclass(thing) and thing.__module__.partition(".")[0] == PACKAGE


def constructor(thing: type, results: Json) -> str:
    """The signature of the constructor, or whose it is: another package's may change with its version."""
    owner = next(base for base in thing.__mro__ if "__init__" in vars(base))
    if not is_ours(owner):
        return f"as {owner.__module__.partition('.')[0]}'s {owner.__name__}"
    return signature(owner.__init__, results, bound=True).partition(" -> ")[0]


def members(thing: type, results: Json) -> dict[str, str]:
    """What a class offers by name: the signatures of its methods, and its other attributes by their kind."""
    result: dict[str, str] = {}
    for name in sorted({name for base in thing.__mro__ if is_ours(base) for name in vars(base) if public(name)}):
        value = inspect.getattr_static(thing, name)
        if isinstance(value, property):
            result[name] = "property"
        elif isinstance(value, (classmethod, staticmethod)):
            function = value.__func__
            result[name] = type(value).__name__ + signature(function, results, bound=isinstance(value, classmethod))
        elif callable(value):
            result[name] = signature(value, results, bound=True)
        else:
            result[name] = "attribute"
    return result


def signature(function: Callable, results: Json, bound: bool = False) -> str:
    """The signature as text, in which a type's name stands without its module; of a `bound` one without `self`."""
    plain = inspect.unwrap(function)
    scope = getattr(plain, "__globals__", {})

    def parameter(given: inspect.Parameter) -> str:
        mark = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(given.kind, "")
        annotation = "" if given.annotation is given.empty else f": {text_of(resolved(given.annotation, scope))}"
        value = "" if given.default is given.empty else f" = {default(given.default)}"
        return f"{mark}{given.name}{annotation}{value}"

    whole = inspect.signature(function)
    parameters = list(whole.parameters.values())[bound:]
    parts: list[str] = []
    for i, each in enumerate(parameters):
        before = parameters[i - 1].kind if i else None
        if before is each.POSITIONAL_ONLY and each.kind is not each.POSITIONAL_ONLY:
            parts.append("/")
        if each.kind is each.KEYWORD_ONLY and before not in (each.KEYWORD_ONLY, each.VAR_POSITIONAL):
            parts.append("*")
        parts.append(parameter(each))
    returned = resolved(whole.return_annotation, scope)
    note_results(returned, results)
    return f"({', '.join(parts)})" + ("" if returned is whole.empty else f" -> {text_of(returned)}")


def resolved(annotation: object, scope: dict) -> object:
    """An annotation that is text, as the type it names; unchanged where it cannot be resolved."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, scope)
    except (NameError, AttributeError, TypeError):
        return annotation


def text_of(annotation: object) -> str:
    """A type as text, however it was written: `Optional[torch.Tensor]` and `"Tensor | None"` are "Tensor | None"."""
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return MODULE_PREFIX.sub("", annotation)
    if isinstance(annotation, list):  # a Callable's arguments
        return f"[{', '.join(map(text_of, annotation))}]"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(text_of, arguments))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin is not None and arguments:
        return f"{text_of(origin)}[{', '.join(map(text_of, arguments))}]"
    return getattr(annotation, "__name__", None) or MODULE_PREFIX.sub("", str(annotation))


def default(value: object) -> str:
    """A default as text, the same on every machine: a path as its text, a function by its name."""
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        inner = ", ".join(map(default, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(value, enum.Enum):
        return str(value)
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return repr(value)


# Results


def note_results(annotation: object, results: Json) -> None:
    """Add to `results` the fields of each class of ours in an annotation, and of those that its fields hold."""
    for argument in typing.get_args(annotation):
        note_results(argument, results)
    if not is_ours(annotation):
        return
    named = getattr(annotation, "_fields", None)
    if annotation.__name__ in results or not (named or dataclasses.is_dataclass(annotation)):
        return
    fields = list(named or (field.name for field in dataclasses.fields(annotation)))
    results[annotation.__name__] = {"kind": "tuple" if named else "dataclass", "fields": fields}
    for value in typing.get_type_hints(annotation).values():
        note_results(value, results)


def examples() -> dict[str, object]:
    """An object of each public class that has attributes beyond those of its class."""
    model = zf.ZFNet(2, image_size=64, channels=(2,) * 5, fc=(3, 3))
    return {
        "ZFNet": model,
        "Deconvnet": zf.Deconvnet(model),
        "nn.ConvReLU": zf.nn.ConvReLU(2, 3, 3),
        "nn.ConvReLUMaxPool": zf.nn.ConvReLUMaxPool(2, 3, 3, pool_kernel=2),
        "nn.ContrastNorm": zf.nn.ContrastNorm(),
        "nn.Linear": zf.nn.Linear(2, 3),
        "nn.MaxPoolSwitches": zf.nn.MaxPoolSwitches(2),
    }


def attributes(example: object) -> Json:
    """The names of an object's public attributes, without those of every torch module, and of its state dict."""
    names = {name for name in vars(example) if public(name)} - vars(torch.nn.Module()).keys()
    if not isinstance(example, torch.nn.Module):
        return {"names": sorted(names)}
    return {
        "names": sorted(names),
        "children": [name for name, _ in example.named_children()],
        "state": list(example.state_dict()),
        "repr": repr(example).splitlines(),
    }


# Commands


def commands(parser: argparse.ArgumentParser) -> Json:
    """Each command's arguments; the arguments above all commands stand under the program's name."""
    result: Json = {
        parser.prog: {" ".join(action.option_strings) or action.dest: option(action) for action in parser._actions}
    }
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                result |= commands(command)
    return result


def option(action: argparse.Action) -> str:
    """All of an argument except its help, on one line."""
    facts = {
        "dest": action.dest,
        "nargs": action.nargs,
        "const": action.const,
        "type": action.type,
        "choices": None if action.choices is None else list(action.choices),
        "required": action.required or None,
        "metavar": action.metavar,
    }
    stated = (f"{name}={default(value)}" for name, value in facts.items() if value is not None)
    return f"{type(action).__name__}: {', '.join(stated)}, default={default(action.default)}"


if __name__ == "__main__":
    print(json.dumps(surface(), indent=1, sort_keys=True))
