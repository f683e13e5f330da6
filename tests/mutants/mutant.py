"""A wrong change as small as a slip, and the tests that must see it."""

import shlex
from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str
    old: str  # occurs once in the file
    new: str
    tests: str  # pytest's arguments, as narrow as the tests that are about what is changed
    sources: tuple[str, ...] = ()  # of csrc/cuda, where `file` is a header: what is compiled
    isa: str = ""  # of csrc/cpu: what is compiled, if not for the instruction set in use

    def arguments(self) -> list[str]:
        return shlex.split(self.tests)
