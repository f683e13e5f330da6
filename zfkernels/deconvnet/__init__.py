"""Activations projected back to pixels."""

from .deconvnet import Deconvnet
from .results import Joint, Projection

__all__ = ["Deconvnet", "Joint", "Projection"]
