"""Triton kernels of the operations in ``solo_infer.ops``."""
