"""Compilation of the kernels to machine code, without a GPU."""

import importlib

import pytest

triton = pytest.importorskip("triton", minversion="3.3")  # for the interface of its compiler

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CAPABILITIES = {"H100, H200": 90, "V100": 70}
POINTERS = {
    "packed": "*u8", "image": "*u8", "labels": "*i64", "levels": "*i64", "boxes": "*i32", "columns": "*i32",
    "rows": "*i32", "logits": "*{dtype}", "sums": "*fp32", "column_masks": "*fp32", "row_masks": "*fp32",
    "x": "*{dtype}", "y": "*{dtype}", "weight": "*{dtype}", "bias": "*{dtype}", "values": "*{dtype}",
    "out": "*{dtype}", "soft": "*fp32", "intersections": "*fp32", "areas": "*fp32", "max_ious": "*fp32",
    "factors": "*fp32", "means": "*fp32", "deviations": "*fp32", "mean_in": "*fp32", "scale_in": "*fp32",
    "mean_out": "*fp32", "scale_out": "*fp32", "sigma": "fp32", "eps": "fp32", "scale_y": "fp32",
    "scale_x": "fp32", "map_scale_y": "fp32", "map_scale_x": "fp32", "threshold": "fp32",
}  # fmt: skip
KERNELS = [
    ("matrix_nms", "_intersections_kernel", {"TILE": 32, "BYTES": 32, "SEGMENT": 1024}),
    ("matrix_nms", "_compensation_kernel", {"TILE": 32}),
    ("matrix_nms", "_decay_kernel", {"TILE": 32, "GAUSSIAN": True}),
    ("matrix_nms", "_decay_kernel", {"TILE": 32, "GAUSSIAN": False, "count": 1}),
    ("group_norm_relu", "_statistics_kernel", {"PIXELS": 32, "CHANNELS": 256}),
    ("group_norm_relu", "_statistics_kernel", {"PIXELS": 64, "CHANNELS": 256}),
    ("group_norm_relu", "_merge_kernel", {"WIDTH": 8, "BLOCKS": 64}),
    ("group_norm_relu", "_merge_kernel", {"WIDTH": 1, "BLOCKS": 64, "pixels": 1, "blocks": 1}),
    ("group_norm_relu", "_apply_kernel", {"PIXELS": 32, "CHANNELS": 256}),
    ("group_norm_relu", "_apply_kernel", {"PIXELS": 64, "CHANNELS": 256}),
    ("paste_masks", "_paste_kernel", {"ROWS": 8, "BYTES": 16, "FAR": 1 << 30}),
    ("mask_statistics", "_cell_kernel", {"BYTES": 128, "areas": "*i32"}),
    (
        "mask_statistics",
        "_cell_kernel",
        {"BYTES": 128, "areas": "*i32", "coarse_height": 1, "out_width": 1},
    ),
    (
        "mask_statistics",
        "_axis_kernel",
        {"BYTES": 128, "areas": "*i32", "columns": "*i64", "rows": "*i64"},
    ),
    ("preprocess", "_preprocess_kernel", {"ROWS": 8, "COLUMNS": 64}),
]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("module, name, constants", KERNELS)
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_kernel_compiles(module, name, constants):
    compile_for("H100, H200", "bf16", module, name, constants)


@pytest.mark.parametrize("module, name, constants", [KERNELS[0], KERNELS[7]])
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_kernel_compiles_for_an_older_gpu(module, name, constants):
    compile_for("V100", "fp16", module, name, constants)


def compile_for(gpu, dtype, module, name, constants):
    kernel = getattr(importlib.import_module(f"solo_infer.ops.triton.{module}"), name)
    types = {**POINTERS, **{key: value for key, value in constants.items() if isinstance(value, str)}}
    constants = {key: value for key, value in constants.items() if not isinstance(value, str)}
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32").format(dtype=dtype)
        for argument in kernel.arg_names
    }
    target = GPUTarget("cuda", CAPABILITIES[gpu], 32)
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=target)
    assert len(compiled.asm["cubin"]) > 1000
    assert compiled.metadata.shared <= 48 << 10
