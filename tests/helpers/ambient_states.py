"""States of torch and numpy that a caller may set around a call."""

import contextlib
import gc
import warnings

import numpy as np
import torch
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def flush_denormals():
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # pycocotools 2.0.11 with numpy 2, and torch's own modules
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


@contextlib.contextmanager
def everything():
    with (
        default_dtype(torch.float64),
        default_device("meta"),
        torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode(),
    ):
        yield


class PassThrough(TorchFunctionMode):
    """Function mode that calls every function as it is."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def harmless():
    """Set what torch and numpy offer for debugging and reproducibility."""
    with (
        torch.enable_grad(),
        torch.autograd.set_detect_anomaly(True, check_nan=True),
        deterministic_algorithms(),
        flush_denormals(),
        PassThrough(),
        np.errstate(all="raise"),
        warnings_as_errors(),
    ):
        yield


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device_context": lambda: torch.device("meta"),
    "default_device": lambda: default_device("meta"),
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "harmless": harmless,
    "everything": everything,
}


def is_autocast_enabled():
    """Return whether a matrix product on the CPU is computed in bfloat16."""
    matrix = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    return torch.mm(matrix, matrix).dtype == torch.bfloat16


def snapshot():
    """Return the state of torch that a call must not change."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": is_autocast_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "flush": float(torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1) == 0,
        "precision": torch.get_float32_matmul_precision(),
        "random": torch.get_rng_state().tolist(),
        "numpy_random": np.random.get_state()[1].tolist(),
        "numpy_errors": np.geterr(),
        "filters": list(warnings.filters),
    }


def clear_caches():
    """Empty every cache of a function of solo_infer, as in a new process."""
    for function in [o for o in gc.get_objects() if type(o).__name__ == "_lru_cache_wrapper"]:
        if (getattr(function, "__module__", None) or "").startswith("solo_infer."):
            function.cache_clear()
