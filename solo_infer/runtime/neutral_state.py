"""Calls that do not depend on the state of torch in the calling thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def neutral_state() -> Iterator[None]:
    """Suspend the caller's inference mode, gradients and autocast. Also a decorator of functions.

    The default dtype and the default device cannot be suspended for one thread. Code therefore creates each
    tensor with an explicit dtype and device.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # tensors of that mode would end up in caches
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.is_autocast_enabled():  # without CUDA, its context warns
            stack.enter_context(torch.autocast("cuda", enabled=False))
        yield
