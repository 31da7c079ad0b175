"""Comparison of nested outputs of networks."""

import torch


def flatten_tensors(output):
    """Return the tensors of nested lists and tuples, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for item in output for tensor in flatten_tensors(item)]


def assert_close_outputs(output, expected, tolerance):
    """Check that tensors agree, within a tolerance relative to the greatest value of each expected tensor."""
    tensors, expected_tensors = flatten_tensors(output), flatten_tensors(expected)
    assert len(tensors) == len(expected_tensors) > 0
    for tensor, expected_tensor in zip(tensors, expected_tensors, strict=True):
        assert tensor.dtype == expected_tensor.dtype
        limit = tolerance * float(expected_tensor.float().abs().max())
        torch.testing.assert_close(tensor.float(), expected_tensor.float(), rtol=0, atol=limit)


def random_maps(shape, count=1, dtype=torch.float32, seed=1):
    """Return normally distributed channels_last maps (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, *shape, generator=generator).to(dtype)
    return maps.contiguous(memory_format=torch.channels_last)
