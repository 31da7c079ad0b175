"""Dispatch mode that rejects float64 tensors, which silently become zeros on CoreX cards."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Float64Error(AssertionError):
    """An operator received or returned a float64 tensor."""


class NoFloat64(TorchDispatchMode):
    """Dispatch mode that raises when an operator receives or returns a float64 tensor.

    It makes no difference between host and device: a tensor that is never float64 on the host cannot be
    copied as float64.

    Attributes:
        num_operators: Number of operators that ran.
    """

    def __init__(self):
        super().__init__()
        self.num_operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.num_operators += 1
        for leaf in tree_flatten((args, kwargs, result))[0]:
            if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float64, torch.complex128):
                raise Float64Error(f"{func} has a {leaf.dtype} tensor of shape {tuple(leaf.shape)}")
        return result
