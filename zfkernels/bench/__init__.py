"""`zfkernels bench`: every op and job beside every peer that is installed, on this machine.

jobs.py lists what is measured; ops.py, stacks.py and networks.py build it on the layers of shapes.py. torch_ops.py has
the ops as torch's users write them, peers.py the contenders, checks.py what a right result is. measure.py takes times,
ceilings.py measures what the machine can do, memory.py the most memory that a job needs. tables.py and plots.py show a
run, record.py says where it comes from, run.py is the run itself.
"""
