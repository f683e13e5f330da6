"""What a trace of a model rests on: its modules, what they are set to, and whether something stands in their way."""

from torch import nn

from .trace import GLOBAL_HOOKS, HOOKS

PLAIN = (bool, int, float, str, tuple, type(None))


def marks(model: nn.Module) -> list[tuple]:
    """Equal to what they were exactly if no module was replaced or set differently, and no hook has come or gone.

    Values of parameters do not count: they are read anew at each use. Their shapes do.
    """
    everywhere = tuple(bool(vars(nn.modules.module)[name]) for name in GLOBAL_HOOKS)
    return [everywhere, *(_of_module(name, module) for name, module in model.named_modules(remove_duplicate=False))]


def _of_module(name: str, module: nn.Module) -> tuple:
    values = vars(module)
    return (
        name,
        module,
        type(module),
        values.get("forward"),
        [key for key in HOOKS if values.get(key)],
        {key: value for key, value in values.items() if type(value) in PLAIN},
        {key: None if value is None else value.shape for key, value in values["_parameters"].items()},
    )
