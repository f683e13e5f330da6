"""Activations projected back to pixels."""

from .deconvnet import Deconvnet, Joint, Projection

__all__ = ["Deconvnet", "Joint", "Projection"]
