"""Tensor operations: mask NMS, resizing, packed masks, and the choice between PyTorch and Triton."""
