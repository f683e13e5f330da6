"""torch.compile(model, backend="zfkernels"): other people's convolutional networks on our kernels, for inference.

backend.py is what torch calls; graph.py makes in-place ops plain; match.py finds what one kernel computes; program.py
runs the result and notices changed weights (ops/sources.py); kernels.py turns a step into a call with ready addresses.
"""

from .backend import backend

__all__ = ["backend"]
