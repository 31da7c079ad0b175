"""Every new tensor has an explicit dtype and device: the defaults belong to the caller."""

import ast
from pathlib import Path

import pytest

import solo_infer

ROOT = Path(solo_infer.__file__).parent
# Functions of torch whose results have the default dtype, or are on the default device.
FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "hann_window", "linspace",
    "logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor",
    "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
CLASSES = {"Tensor", "FloatTensor", "LongTensor"}  # as constructors
EXCLUDED = ("training/torch_state.py",)  # asks for the default device


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in EXCLUDED:
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def problems(tree):
    """Return the lines of calls that leave dtype or device to the caller's defaults."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if not isinstance(node.func.value, ast.Name) or node.func.value.id != "torch":
            continue
        missing = {"dtype", "device"} - {keyword.arg for keyword in node.keywords}
        if node.func.attr in CLASSES or (node.func.attr in FACTORIES and missing):
            lines.append(f"line {node.lineno}: torch.{node.func.attr} without {sorted(missing)}")
    return lines


def test_tensors_have_explicit_dtype_and_device():
    found = {name: lines for name, tree in modules() if (lines := problems(tree))}
    assert found == {}


def test_cached_functions_compute_in_a_neutral_state():
    """A cache outlives the autocast or the inference mode of the call that filled it."""
    found = []
    for name, tree in modules():
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            decorators = " ".join(ast.unparse(decorator) for decorator in function.decorator_list)
            body = " ".join(ast.unparse(statement) for statement in function.body)
            is_cached = any(word in decorators for word in ("lru_cache", "cache"))
            if is_cached and "torch." in body and "neutral_state()" not in decorators:
                found.append(f"{name}: {function.name}")
    assert found == [
        "runtime/device.py: _fast_paths",  # asks for the properties of the device
        "runtime/thread_pool.py: can_limit_threads",  # no tensors
    ]


@pytest.mark.parametrize(
    "code, count",
    [
        ("torch.zeros(3)", 1),
        ("torch.zeros(3, dtype=x)", 1),
        ("torch.arange(3, device=x)", 1),
        ("torch.arange(3, device=x, dtype=y)", 0),
        ("torch.Tensor([1])", 1),
        ("x.new_zeros(3)", 0),
        ("torch.from_numpy(x)", 0),
    ],
)
def test_calls_that_are_found(code, count):
    assert len(problems(ast.parse(code))) == count
