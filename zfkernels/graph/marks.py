"""What a trace of a model rests on: its modules, what they are set to, and whether something stands in their way."""

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)
PLAIN = (bool, int, float, str, tuple, type(None))


def marks(model: nn.Module) -> list[tuple[object, ...]]:
    """Equal to what they were exactly if no module was replaced or set differently, and no hook has come or gone.

    Values of parameters do not count: they are read anew at each use. Their shapes do.
    """
    everywhere = tuple(bool(vars(nn.modules.module)[name]) for name in GLOBAL_HOOKS)
    return [everywhere, *(_of_module(name, module) for name, module in model.named_modules(remove_duplicate=False))]


def _of_module(name: str, module: nn.Module) -> tuple[object, ...]:
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


def hooked(model: nn.Module) -> set[str]:
    """The names of the modules with hooks; "" stands for the model, and for hooks that all modules have."""
    everywhere = any(vars(nn.modules.module)[name] for name in GLOBAL_HOOKS)
    return {name for name, module in model.named_modules() if any(vars(module).get(hooks) for hooks in HOOKS)} | (
        {""} if everywhere else set()
    )
