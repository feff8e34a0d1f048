"""Fused kernels; each has its reference in `attention` and is called by it."""
