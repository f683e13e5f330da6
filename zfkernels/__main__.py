"""`python -m zfkernels`, the program `zfkernels`."""

import atexit
import os
import sys

from .cli import STOPPED, main

code = main()
if code == STOPPED:
    # Python would end itself by a signal, and not with the code, if Ctrl-C came while it ran the text of a function.
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)
sys.exit(code)
