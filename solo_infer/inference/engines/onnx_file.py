"""Reading of ONNX files before an engine sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from solo_infer.errors import ExportError
from solo_infer.runtime.messages import quoted, shortened

MAX_FILE_BYTES = (1 << 31) - 1  # of a protocol buffer


def read_onnx(path: Path) -> tuple[bytes, dict[str, str]]:
    """Return the content and the metadata of an ONNX file.

    Raises:
        ExportError: ``onnx`` is not installed, or the file cannot be read, is damaged, or refers to other
            files, which an engine would read.
    """
    onnx = import_onnx()
    from google.protobuf.message import DecodeError

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ExportError(f"{path} has more than {MAX_FILE_BYTES} bytes, which no ONNX file has.")
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}.") from error
    except DecodeError as error:
        raise ExportError(f"{path} is damaged, or not an ONNX file: {shortened(error)}.") from error
    if not model.HasField("graph"):
        raise ExportError(f"{path} is damaged, or not an ONNX file: it holds no graph.")
    external = _find_external(model, onnx)
    if external is not None:
        raise ExportError(
            f"{path} keeps the tensor {quoted(external)} in another file: expected a file that holds all "
            "of its tensors, as 'solo-infer export' writes it."
        )
    return content, {entry.key: entry.value for entry in model.metadata_props}


def _find_external(message: Any, onnx: Any) -> str | None:
    """Return the name of the first tensor at any depth of a message whose data are in another file."""
    tensor_type = onnx.TensorProto
    pending = [message]
    while pending:
        current = pending.pop()
        if isinstance(current, tensor_type):
            if current.data_location == tensor_type.EXTERNAL or current.external_data:
                return str(current.name)
            continue
        for descriptor, value in current.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                repeated = not hasattr(value, "ListFields")
                pending.extend(value if repeated else [value])
    return None


def import_onnx() -> Any:
    """Return the package onnx.

    Raises:
        ExportError: It is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the package onnx ({error}): pip install 'solo-infer[export]'."
        ) from error
    return onnx
