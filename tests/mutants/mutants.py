"""All mutants. Where a mutant's text is changed for good, the mutant is changed with it; a change that no test can see,
such as another cost in a choice between kernels, is none.
"""

from mutant import Mutant
from of_backends import BACKENDS
from of_commands import COMMANDS
from of_graphs import OPS_AND_GRAPHS
from of_kernels import KERNELS
from of_python import PYTHON

MUTANTS: list[Mutant] = [*KERNELS, *BACKENDS, *OPS_AND_GRAPHS, *PYTHON, *COMMANDS]
