"""The choice between direct summation and Winograd's filtering on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

from .registry import module


class use_exact:
    """Compute float32 convolutions on the CPU by direct summation only, from now on or, as a context manager, until the
    block's end.

    Without it they go by Winograd's minimal filtering (Lavin & Gray, arXiv 1509.09308) where that is faster: 1.3 to 3
    times, at relative errors of 1e-6 to 3e-6 in norm against 2e-7 to 1e-6; an output whose window holds only zeros may
    then come out as 1e-7 of its neighbours instead of 0. `use_exact(False)` goes back to that. One choice for the whole
    process, also made by ZFKERNELS_EXACT=1 in the environment. float64 is always direct. Raises TypeError unless
    `exact` is a bool.

    A projection sums directly, whatever is set here, in the convolutions below a max-pool whose switches it records:
    there the equal values of a flat area must come out equal. Of a projection from ZFNet's conv5, which stands on two
    pools, that takes 24% of its time at one image and 27% at eight; of a ResNet's only the stem is summed so.
    """

    def __init__(self, exact: bool = True) -> None:
        if not isinstance(exact, bool):
            raise TypeError(f"exact must be True or False, got {exact!r}")
        cpu = module("cpu")
        self._compiled = cpu._C
        self._previous = self._compiled.winograd()
        self._compiled.set_winograd(cpu.NEVER if exact else cpu.WHERE_FASTER)

    def __enter__(self) -> "use_exact":
        return self

    def __exit__(self, *error: object) -> None:
        self._compiled.set_winograd(self._previous)


@contextmanager
def exact_in_thread(backend: str) -> Iterator[None]:
    """The same for what this thread calls inside, on backend "cpu"; the others' sums are as they always are.

    The ties of a max-pool fall by its rule only above such sums: on a flat area, Winograd's values differ by their
    rounding from place to place in a tile.
    """
    if backend != "cpu":
        yield
        return
    compiled = module("cpu")._C
    previous = compiled.exact_in_thread()
    compiled.set_exact_in_thread(True)
    try:
        yield
    finally:
        compiled.set_exact_in_thread(previous)
