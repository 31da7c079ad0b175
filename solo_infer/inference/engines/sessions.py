"""Engines that run exported models on the CPU: ONNX Runtime and OpenVINO.

An engine uses as many threads as torch does when its model is opened (``torch.set_num_threads``,
``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import importlib
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solo_infer.config.validation import require_choice
from solo_infer.errors import DeviceError, ExportError
from solo_infer.inference.engines.metadata import INPUT_NAME, KEYS, OUTPUT_NAMES, ExportedConfig
from solo_infer.inference.engines.onnx_file import read_onnx
from solo_infer.runtime.messages import describe_error, quoted, shortened

SUFFIXES = (".onnx", ".xml")
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}  # OpenVINO's names


class EngineSession(ABC):
    """An exported model in an engine, opened on first use. Thread-safe, and picklable by its path.

    Args:
        path: ``.onnx`` file, or ``.xml`` file of OpenVINO beside its ``.bin`` file.
        dtype: Dtype in which the engine computes. OpenVINO takes float32 instead on a CPU without the other.

    Attributes:
        name: Name of the engine.
        dtype: Dtype in which the engine computes.
        exported: Metadata of the file.

    Raises:
        ExportError: The package of the engine is missing, or the file cannot be used.
        DeviceError: The engine does not compute in the dtype.
    """

    name: str

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.path, self.dtype = path, dtype
        self._lock = threading.Lock()
        self._opened: Any = None
        model, metadata = self._read()
        try:
            self.exported = ExportedConfig.from_metadata(metadata)
        except ExportError as error:
            raise ExportError(f"{path} cannot be used: {error}") from error
        self._opened = self._open(model)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "dtype": self.dtype, "exported": self.exported}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _opened=None)

    def run(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs of the model by name.

        Args:
            inputs: (N, 3, H, W) float32, or uint8 if the model takes pixels; (N, H, W, 3) uint8 if it takes
                photos.

        Raises:
            ExportError: The engine refuses the input or fails.
        """
        if self._opened is None:  # after unpickling
            with self._lock:
                if self._opened is None:
                    self._opened = self._open(self._read()[0])
        try:
            return self._run(inputs)
        except Exception as error:  # each engine raises classes of its own
            raise ExportError(
                f"{self.name} cannot run {self.path} on an input of {inputs.shape}: {shortened(error)}"
            ) from error

    @abstractmethod
    def _read(self) -> tuple[Any, dict[str, str]]:
        """Return the content of the file, as ``_open`` takes it, and its metadata."""

    @abstractmethod
    def _open(self, model: Any) -> Any:
        """Return the model as the engine runs it."""

    @abstractmethod
    def _run(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs of the model by name."""

    def _check_names(self, inputs: list[str], outputs: list[str]) -> None:
        """Raise ``ExportError`` unless the graph has the input and the outputs of an exported model."""
        if inputs != [INPUT_NAME] or set(outputs) != set(OUTPUT_NAMES):
            raise ExportError(
                f"{self.path} has the inputs {quoted(inputs)} and the outputs {quoted(outputs)}: expected "
                f"{INPUT_NAME!r} and {', '.join(OUTPUT_NAMES)}, as 'solo-infer export' writes them."
            )

    def _refuse(self, error: Exception) -> ExportError:
        return ExportError(f"{self.name} cannot open {self.path}: {shortened(error)}")


class OnnxRuntimeSession(EngineSession):
    """An ONNX file in ONNX Runtime; see ``EngineSession``."""

    name = "onnxruntime"

    def _read(self) -> tuple[Any, dict[str, str]]:
        if self.dtype is not torch.float32:
            raise DeviceError(
                f"dtype={str(self.dtype).removeprefix('torch.')}: ONNX Runtime computes an exported model in "
                "float32. Use float32, or the engine openvino for bfloat16."
            )
        if self.path.suffix.lower() == ".xml":
            raise ExportError(f"{self.path} is a file of OpenVINO: use the engine openvino.")
        return read_onnx(self.path)

    def _open(self, model: Any) -> Any:
        runtime = _import_engine(self.name, "ONNX Runtime", "export")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, which are raised as well
        # Threads that wait by spinning take the cores of other processes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes are not public
            raise self._refuse(error) from error
        self._output_names = [value.name for value in session.get_outputs()]
        self._check_names([value.name for value in session.get_inputs()], self._output_names)
        return session

    def _run(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self._opened.run(self._output_names, {INPUT_NAME: inputs})
        return dict(zip(self._output_names, outputs, strict=True))


class OpenVINOSession(EngineSession):
    """An ONNX file or an ``.xml`` file in OpenVINO; see ``EngineSession``."""

    name = "openvino"

    def _read(self) -> tuple[Any, dict[str, str]]:
        openvino = _import_engine(self.name, "OpenVINO", "openvino")
        try:
            if self.path.suffix.lower() != ".xml":
                content, metadata = read_onnx(self.path)
                return openvino.Core().read_model(model=content), metadata
            model = openvino.Core().read_model(str(self.path))
            values = {key: model.get_rt_info(key).value for key in KEYS if model.has_rt_info(key)}
        except ExportError:
            raise
        except RuntimeError as error:
            raise self._refuse(error) from error
        return model, {key: str(value) for key, value in values.items()}

    def _open(self, model: Any) -> Any:
        openvino = _import_engine(self.name, "OpenVINO", "openvino")
        self._output_names = [_port_name(port, OUTPUT_NAMES) for port in model.outputs]
        self._check_names([_port_name(port, (INPUT_NAME,)) for port in model.inputs], self._output_names)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.dtype],
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._requests = threading.local()  # a request serves one thread
        try:
            compiled = openvino.Core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise self._refuse(error) from error
        # A CPU without instructions for a dtype computes in float32.
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.dtype = next(dtype for dtype, name in _PRECISIONS.items() if name == used)
        return compiled

    def _run(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._opened.create_infer_request()
        outputs = request.infer({INPUT_NAME: inputs}).values()
        return dict(zip(self._output_names, outputs, strict=True))


ENGINES: dict[str, type[EngineSession]] = {
    OnnxRuntimeSession.name: OnnxRuntimeSession,
    OpenVINOSession.name: OpenVINOSession,
}


def open_session(path: Path, engine: str | None, dtype: torch.dtype) -> EngineSession:
    """Open an exported model.

    Args:
        path: ``.onnx`` or ``.xml`` file.
        engine: "onnxruntime" or "openvino". Defaults to ONNX Runtime for ``.onnx``, OpenVINO for ``.xml``.
        dtype: Dtype in which the engine computes.

    Raises:
        ConfigError: The engine is unknown.
        ExportError: The package of the engine is missing, or the file cannot be used.
        DeviceError: The engine does not compute in the dtype.
    """
    if engine is None:
        engine = OpenVINOSession.name if path.suffix.lower() == ".xml" else OnnxRuntimeSession.name
    require_choice("engine", engine, ENGINES)
    return ENGINES[engine](path, dtype)


def _port_name(port: Any, expected: tuple[str, ...]) -> str:
    """Return the name of an input or output of OpenVINO; of several names, an expected one if possible."""
    names = sorted(port.get_names())
    return next((name for name in names if name in expected), names[0] if names else "")


def _import_engine(package: str, title: str, extra: str) -> Any:
    """Import the package of an engine."""
    try:
        return importlib.import_module(package)
    except Exception as error:  # a broken installation raises more than ImportError
        raise ExportError(
            f"{title} needs the package {package} ({describe_error(error)}): "
            f"pip install 'solo-infer[{extra}]'."
        ) from error
