"""How fast the kernels and a training step are on this machine, beside what it could do at most: `freedive bench ops|train`."""
