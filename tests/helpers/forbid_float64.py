"""A guard that lets no float64 tensor be: on CoreX, one that is copied to a card becomes zeros in silence."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Float64Error(AssertionError):
    """A float64 tensor came up."""


class NoFloat64(TorchDispatchMode):
    """Raises when an operator of torch takes or gives a float64 tensor, and counts the operators it saw.

    Host and device are not told apart: what is never float64 on the host cannot be copied as such.
    """

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen += 1
        for leaf in tree_flatten((args, kwargs, result))[0]:
            if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float64, torch.complex128):
                raise Float64Error(f"{func} has a {leaf.dtype} tensor of shape {tuple(leaf.shape)}")
        return result
