"""The CPU's compiled kernels: their build and their operators."""
