"""The small network of `zfkernels demo` and `zfkernels gallery`, and their pages."""
