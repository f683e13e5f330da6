"""One set of cases, bounds and memory for `zfkernels verify`, `zfkernels bench` and the tests."""
