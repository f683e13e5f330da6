"""`zfkernels bench`: every op and job beside every peer that is installed, on this machine.

`shapes` says on what, `jobs` and `networks` what is computed, `plain` how torch's user would, `peers` by whom else,
`checks` what a right result is, `measure` how time is taken, `ceilings` what the machine could do, `memory` what a job
needs at most, `tables` and `plots` how it is shown, `record` where it comes from; `command` is the command line.
"""
