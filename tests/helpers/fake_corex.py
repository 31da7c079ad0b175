"""Simulation of a BI-V100: torch reports itself as CoreX, and tensors on the host pretend to be on a card.

Known behavior of the real card: it appears as CUDA of capability (7, 0) with warps of 64, float64 tensors
that are copied to it become zeros, and products of float64 matrices raise.
"""

from importlib import metadata
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from solo_infer.runtime import device as device_module

VERSION = "2.1.0+corex.3.2.1"
CARD = SimpleNamespace(
    name="Iluvatar BI-V100", major=7, minor=0, total_memory=32 << 30, multi_processor_count=16, warp_size=64
)
_TO_HOST = ("cpu", "numpy", "tolist", "item")


class SimulatedCard(TorchFunctionMode):
    """Mode in which tensors can be on "cuda:0" and behave as on the card.

    Args:
        forbid_float64: Raise when a float64 tensor is copied to the card, instead of turning it into zeros.
    """

    def __init__(self, forbid_float64=False):
        super().__init__()
        self.forbid_float64 = forbid_float64
        self.num_transfers = 0
        self._on_card = WeakTensorKeyDictionary()

    def __enter__(self):
        """Make parameters of tensors on the card, of which torch does not tell modes, stay there."""
        make = torch.Tensor._make_subclass

        def make_on_card(cls, data, *args):
            return self._moved(make(cls, data, *args), data in self._on_card, False, False)

        self._patch = patch.object(torch.Tensor, "_make_subclass", make_on_card)
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        self._patch.stop()
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.__deepcopy__:  # its other argument holds all copies so far
            return self._moved(func(*args), args[0] in self._on_card, False, False)
        leaves = tree_flatten((args, kwargs or {}))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        from_card = any(tensor in self._on_card for tensor in tensors)
        name = getattr(func, "__name__", "")
        if name == "pin_memory":
            return args[0]
        if func == torch.Tensor.device.__get__:
            return torch.device("cuda", 0) if from_card else func(*args, **(kwargs or {}))
        if func == torch.Tensor.is_cuda.__get__:
            return from_card
        to_card = any(map(_is_card, leaves))
        to_host = name in _TO_HOST or (name == "to" and any(map(_is_host, leaves)))
        args, kwargs = tree_map(lambda leaf: "cpu" if _is_card(leaf) else leaf, (args, kwargs or {}))
        if from_card and name in ("matmul", "mm", "__matmul__") and tensors[0].dtype == torch.float64:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasDgemm")
        result = func(*args, **kwargs)
        if func == torch.Tensor.data.__set__ and args[1] in self._on_card:
            self._on_card[args[0]] = True
        if isinstance(result, torch.Size):
            return result
        return tree_map(lambda leaf: self._moved(leaf, from_card, to_card, to_host), result)

    def _moved(self, leaf, from_card, to_card, to_host):
        """Return a result, marked as on the card where it would be there."""
        if not isinstance(leaf, torch.Tensor) or not (from_card or to_card):
            return leaf
        if to_host:
            return leaf.clone() if leaf in self._on_card else leaf
        if leaf.dtype == torch.float64 and not from_card:
            if self.forbid_float64:
                raise AssertionError(f"a float64 tensor of shape {tuple(leaf.shape)} was copied to the card")
            leaf = torch.zeros_like(leaf)
        self.num_transfers += not from_card
        self._on_card[leaf] = True
        return leaf


def _is_card(value):
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.startswith("cuda")


def _is_host(value):
    return isinstance(value, torch.device | str) and str(value) == "cpu"


def report_as_corex(monkeypatch, usable=True):
    """Make torch report itself as a CoreX build with one card.

    Args:
        monkeypatch: Fixture that restores torch.
        usable: Whether the versions of driver and SDK match. If not, the card is counted but not available.
    """

    def refuse():
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")

    version = metadata.version
    monkeypatch.setattr(torch, "corex", True, raising=False)
    monkeypatch.setattr(metadata, "version", lambda name: VERSION if name == "torch" else version(name))
    monkeypatch.setattr(torch.version, "cuda", "10.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index=None: CARD)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: CARD.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (7, 0))
    if not usable:
        monkeypatch.setattr(torch.cuda, "init", refuse)
    device_module._fast_paths.cache_clear()
