"""The commands of `zfkernels`, one file each: EXAMPLES, add_arguments(parser), run(args), exit code or None."""
