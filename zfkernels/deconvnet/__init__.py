"""Activations projected back to pixels."""

from .deconvnet import NORMS, Deconvnet, Joint, Projection

__all__ = ["NORMS", "Deconvnet", "Joint", "Projection"]
