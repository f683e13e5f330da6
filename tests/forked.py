"""What some code does for each value of an environment variable that is read at import: one process that has imported
torch, and a fork of it for each value."""

import os
import subprocess
import sys
from typing import NamedTuple

PROGRAM = """
import os, sys, traceback, torch
variable, code, *values = sys.argv[1:]
for value in values:
    if os.fork() == 0:
        os.environ[variable], status = value, 0
        os.dup2(1, 2)
        try:
            exec(code)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.wait()[1]), end="\\0", flush=True)
"""


class Done(NamedTuple):
    code: int
    text: str  # what it printed, and its traceback


def forked(variable: str, values: list[str], code: str) -> list[Done]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PROGRAM, variable, code, *values]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    parts = [part.rpartition("\n") for part in done.stdout.split("\0")[:-1]]
    return [Done(int(status), text) for text, _, status in parts]
