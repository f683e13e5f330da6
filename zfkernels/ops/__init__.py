"""The spec of each op: formula, checks, output size, autograd, fake kernel. One file an op family."""
