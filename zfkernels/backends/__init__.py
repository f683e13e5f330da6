"""One module a backend, each a module of plain functions with the same names."""

from .exact import use_exact
from .registry import BEST, MODULES, VARIABLE, available_backends, choose, module, order, reason, use_backend

__all__ = [
    "BEST",
    "MODULES",
    "VARIABLE",
    "available_backends",
    "choose",
    "module",
    "order",
    "reason",
    "use_backend",
    "use_exact",
]
