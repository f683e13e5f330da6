"""The commands of `zfkernels`, one file each: SUMMARY, EXAMPLES, add_arguments(parser), run(args)."""
