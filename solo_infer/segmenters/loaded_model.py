"""A network with its configuration: loading, saving, device and dtype."""

from __future__ import annotations

import functools
import inspect
import os
from abc import ABC
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch

from solo_infer.config import BasePostprocessConfig, ModelConfig
from solo_infer.config.families import FAMILIES, family_of
from solo_infer.config.keywords import PRETRAINED_KEYWORDS, explain_keywords
from solo_infer.config.validation import bounded_repr, require_instance
from solo_infer.errors import ConfigError, ExportError
from solo_infer.inference.engines.sessions import open_session
from solo_infer.models.base import SegmentationNetwork
from solo_infer.runtime.device import require_dtype, resolve_device
from solo_infer.runtime.neutral_state import neutral_state
from solo_infer.segmenters.auto_dtype import resolve_network_dtype
from solo_infer.segmenters.engine_model import check_engine_device, engine_path, is_engine_file
from solo_infer.weights.checkpoint import Checkpoint
from solo_infer.weights.load import load_checkpoint, require_families

if TYPE_CHECKING:
    from typing_extensions import Self

F = TypeVar("F", bound=Callable[..., None])


def explain_loading(init: F) -> F:
    """Decorate the ``__init__`` of a model: a name, or no network, gives an error that names the loader.

    Args:
        init: Takes the configuration and the network.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: LoadedModel, *args: Any, **kwargs: Any) -> None:
        values = [*args, *kwargs.values()]
        name = values[0] if values else "tiny"
        try:
            signature.bind(self, *args, **kwargs)
            is_bound = True
        except TypeError:
            is_bound = False
        if not is_bound or isinstance(name, str | bytes | os.PathLike):
            kind = type(self).__name__
            example = name if isinstance(name, str | bytes | os.PathLike) else "tiny"
            raise ConfigError(
                f"{kind}({bounded_repr(name) if values else ''}) does not load a model: use "
                f"{kind}.from_pretrained({bounded_repr(example)}). 'solo-infer models' lists the published "
                f"models; {kind} itself takes a ModelConfig and a network."
            )
        init(self, *args, **kwargs)

    return cast(F, checked)


class LoadedModel(ABC):
    """Base class of ``Segmenter``: a network with its configuration.

    Attributes:
        family: Family of the models, None for the base class.
        config: Architecture, preprocessing, thresholds and categories.
        network: Plain ``torch.nn.Module``, in eval mode.
    """

    family: ClassVar[str | None] = None
    config: ModelConfig
    network: SegmentationNetwork

    @explain_loading
    def __init__(self, config: ModelConfig, network: SegmentationNetwork) -> None:
        require_instance("config", config, ModelConfig)
        require_instance("network", network, torch.nn.Module)
        architecture = config.architecture
        if architecture.family != self.family:
            raise ConfigError(
                f"{type(self).__name__} cannot use a {architecture.name} model of the family "
                f"{architecture.family!r}: use load_model, which loads every family."
            )
        self.config = config
        self.network = network

    @classmethod
    @explain_keywords("from_pretrained", PRETRAINED_KEYWORDS)
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = torch.float32,
        thresholds: BasePostprocessConfig | None = None,
        config: ModelConfig | None = None,
        revision: str = "main",
        offline: bool | None = None,
        engine: str | None = None,
    ) -> Self:
        """Load a model.

        Args:
            name_or_path: Name of a published model (``solo_infer.available_models()``), checkpoint file
                (mmdet's, the authors', a state dict, safetensors), directory of ``save_pretrained``, id
                (owner/name) of a Hub repo with such a directory, or exported model (``.onnx``, ``.xml``).
            device: "cpu", "cuda", "cuda:1", ... Defaults to CUDA if available, else the CPU.
            dtype: Dtype of the network: float32, float16, bfloat16, or "auto": the fastest one on the
                device, by a short measurement on CPUs with bfloat16 units. Scores and masks are always
                computed in float32.
            thresholds: Post-processing settings. Defaults to the model's own.
            config: Configuration of the model. Defaults to the one found with or inferred from the weights.
            revision: Branch, tag or commit of a Hub repo.
            offline: Whether network access is forbidden. Defaults to the environment
                (``SOLO_INFER_OFFLINE``).
            engine: "onnxruntime" or "openvino", for exported models, which run on the CPU. Defaults to ONNX
                Runtime for ``.onnx`` files and to OpenVINO for ``.xml`` files.

        Raises:
            WeightsError: The weights cannot be found, fetched, read or matched with a model.
            OfflineError: The weights would have to be downloaded, which is forbidden.
            ConfigError: The weights belong to another family of models (``load_model`` accepts any), the
                ``config.json`` beside them is invalid, or an argument has the wrong type.
            DeviceError: The device or dtype is not available.
            ExportError: An exported model cannot be used, or the package of its engine is not installed.
        """
        if engine is not None or is_engine_file(name_or_path):
            return cls._from_engine_file(name_or_path, device, dtype, engine, thresholds, config)
        resolved_device = resolve_device(device)
        resolved_dtype = resolve_network_dtype(dtype, resolved_device)
        checkpoint = load_checkpoint(
            name_or_path,
            config=config,
            revision=revision,
            offline=offline,
            families=cls._families(),
        )
        model = cls.from_checkpoint(checkpoint).to(resolved_device, resolved_dtype)
        if thresholds is not None:
            model.config = replace(model.config, thresholds=thresholds)
        return model

    @classmethod
    @neutral_state()
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Return the model of a checkpoint, on the CPU; it takes over the network of the checkpoint.

        Raises:
            ConfigError: The checkpoint belongs to another family of models.
        """
        network = checkpoint.network.requires_grad_(False).to(memory_format=torch.channels_last)
        segmenter = family_of(checkpoint.config.architecture).load("segmenter")
        # A class that the family's does not derive from refuses the configuration.
        return (segmenter if issubclass(segmenter, cls) else cls)(checkpoint.config, network)

    @classmethod
    def _from_engine_file(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device | None,
        dtype: str | torch.dtype,
        engine: str | None,
        thresholds: BasePostprocessConfig | None,
        config: ModelConfig | None,
    ) -> Self:
        """Load an exported model; see ``from_pretrained``."""
        if config is not None:
            raise ConfigError("config=...: an exported model holds its own configuration. Leave it out.")
        session = open_session(
            engine_path(path, engine), engine, resolve_network_dtype(dtype, torch.device("cpu"))
        )
        if device is not None and str(device) != "auto":
            check_engine_device(resolve_device(device))
        require_families(str(session.path), session.exported.config, cls._families())
        family = family_of(session.exported.config.architecture)
        if family.engine_segmenter is None:
            raise ExportError(f"{session.path}: models of its family do not run in an engine.")
        model: Self = family.load("engine_segmenter")(session)
        return model if thresholds is None else model.with_thresholds(thresholds)  # type: ignore[attr-defined]

    @classmethod
    def _families(cls) -> list[str]:
        """Return the names of the families whose models this class loads."""
        return [
            name
            for name, family in FAMILIES.items()
            if name == cls.family or issubclass(family.load("segmenter"), cls)
        ]

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network."""
        return next(self.network.parameters()).dtype

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype of the network input."""
        return self.dtype

    @neutral_state()
    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Move the network to a device, a dtype or both, in place, and return this model.

        Args:
            device: See ``from_pretrained``. Defaults to the current one.
            dtype: See ``from_pretrained``. Defaults to the current one.

        Raises:
            DeviceError: The device is not available, or cannot compute in the dtype.
        """
        resolved_device = self.device if device is None else resolve_device(device)
        resolved_dtype = self.dtype if dtype is None else resolve_network_dtype(dtype, resolved_device)
        require_dtype(resolved_device, resolved_dtype)
        self.network.to(resolved_device, resolved_dtype)
        return self

    def __repr__(self) -> str:
        architecture = self.config.architecture
        name = f"{type(self).__name__} {architecture.name} {architecture.backbone}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<{name}, {architecture.num_classes} classes, {dtype} on {self.device}>"
