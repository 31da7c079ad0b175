"""Triton kernels of functions in ``solo_infer.ops``; ``ops.dispatch`` imports and runs them."""
