"""Choice of the compiled kernels under test."""

import pytest

from solo_infer.ops.native.library import load_kernels
from solo_infer.runtime.native_library import instruction_sets

IMPLEMENTATIONS = ("torch", "avx2", "avx512")
_MODULES = (
    "inference.tiny_masks",
    "ops.box_nms",
    "ops.winograd",
    "ops.group_norm_relu",
    "ops.kernel_mask_statistics",
    "ops.mask_statistics",
    "ops.matrix_nms",
    "ops.paste_masks",
    "ops.preprocess",
    "ops.packed_weight",
    "models.optimized.winograd_conv",
    "models.optimized.halved_p2",
    "models.optimized.stem",
)


def use_implementation(name, monkeypatch):
    """Let functions use operations of torch, or the compiled kernels for some instructions."""
    library = None
    if name != "torch":
        if name not in instruction_sets():
            pytest.skip(f"this CPU has no {name}")
        library = load_kernels(name)
        if library is None:
            pytest.skip("the kernels are not installed")
    for module in _MODULES:
        monkeypatch.setattr(f"solo_infer.{module}.kernel_library", lambda: library)


def use_matrix_units(has_units, monkeypatch):
    """Let functions take the CPU for one with or without matrix units for bfloat16."""
    monkeypatch.setattr("solo_infer.ops.winograd._has_matrix_units", lambda: has_units)
