"""Functions on tensors: Matrix-NMS, resampling, bit-packed masks."""
