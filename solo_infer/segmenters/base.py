"""Base class of all segmentation models: loading, batching, prediction."""

from __future__ import annotations

import copy
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor

from solo_infer.config import BasePostprocessConfig, ModelConfig
from solo_infer.config.families import FAMILIES, family_of
from solo_infer.config.validation import require_instance, require_positive_ints
from solo_infer.data.images import Color, LoadedImage
from solo_infer.data.prefetch import OnError, PrefetchedImage, prefetch_images
from solo_infer.data.sources import Images, ImageSource, as_sources
from solo_infer.errors import ConfigError
from solo_infer.inference.detections import Detections
from solo_infer.inference.preprocess import Geometry, plan, prepare
from solo_infer.models.base import SegmentationNetwork
from solo_infer.models.optimized.compiled import compile_for_inference
from solo_infer.models.optimized.optimize import OptimizedNetworkCache
from solo_infer.ops.preprocess import upload
from solo_infer.results.result import Result
from solo_infer.runtime.device import require_compile, require_dtype, resolve_device, resolve_dtype
from solo_infer.runtime.neutral_state import neutral_state
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.batching import check_batch, forward_groups, make_results
from solo_infer.segmenters.publishing import Publishing
from solo_infer.weights.checkpoint import Checkpoint
from solo_infer.weights.load import load_checkpoint

if TYPE_CHECKING:
    from typing_extensions import Self


class Segmenter(Publishing, ABC):
    """Base class of all segmentation models: a network with its configuration.

    Thread-safe: calls are stateless, except that CUDA graphs are serialized by a lock. Copies made by
    ``with_thresholds``, ``only`` and ``compile`` share the network, which ``to`` moves; do not call it while
    other threads predict.

    Attributes:
        family: Family of the models, None for the base class.
        config: Architecture, preprocessing, thresholds and categories.
        network: Plain ``torch.nn.Module``, in eval mode.
    """

    family: ClassVar[str | None] = None
    config: ModelConfig
    network: SegmentationNetwork

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
        self._optimized: OptimizedNetworkCache[Any] = OptimizedNetworkCache(network)
        self._class_mask: Tensor | None = None  # (classes,) float32 on the CPU, 0 for excluded classes

    @classmethod
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
    ) -> Self:
        """Load a model.

        Args:
            name_or_path: Name of a published model (``solo_infer.available_models()``), checkpoint file
                (mmdet's, the authors', a state dict, safetensors), directory of ``save_pretrained``, or id
                (owner/name) of a Hub repo with such a directory.
            device: "cpu", "cuda", "cuda:1", ... Defaults to CUDA if available, else the CPU.
            dtype: Dtype of the network: float32, float16 or bfloat16. Scores and masks are always computed
                in float32.
            thresholds: Post-processing settings. Defaults to the model's own.
            config: Configuration of the model. Defaults to the one found with or inferred from the weights.
            revision: Branch, tag or commit of a Hub repo.
            offline: Whether network access is forbidden. Defaults to the environment
                (``SOLO_INFER_OFFLINE``).

        Raises:
            WeightsError: The weights cannot be found, fetched, read or matched with a model.
            OfflineError: The weights would have to be downloaded, which is forbidden.
            ConfigError: The weights belong to another family of models (``load_model`` accepts any), the
                ``config.json`` beside them is invalid, or an argument has the wrong type.
            DeviceError: The device or dtype is not available.
        """
        resolved_device, resolved_dtype = resolve_device(device), resolve_dtype(dtype)
        checkpoint = load_checkpoint(
            name_or_path,
            config=config,
            revision=revision,
            offline=offline,
            families=cls._families(),
        )
        model = cls.from_checkpoint(checkpoint).to(resolved_device, resolved_dtype)
        return model.with_thresholds(thresholds) if thresholds is not None else model

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

    @neutral_state()
    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Move the network to a device, a dtype or both, in place, and return this model.

        Raises:
            DeviceError: The device is not available, or cannot compute in the dtype.
        """
        resolved_device = self.device if device is None else resolve_device(device)
        resolved_dtype = self.dtype if dtype is None else resolve_dtype(dtype)
        require_dtype(resolved_device, resolved_dtype)
        self.network.to(resolved_device, resolved_dtype)
        return self

    def with_thresholds(self, thresholds: BasePostprocessConfig) -> Self:
        """Return a copy with other post-processing settings that shares the network."""
        other = copy.copy(self)
        other.config = replace(self.config, thresholds=thresholds)
        return other

    @neutral_state()
    def only(self, classes: str | int | Iterable[str | int]) -> Self:
        """Return a copy that detects only some of the classes and shares the network.

        Excluded classes are removed before NMS, so they do not use up ``nms_pre`` or ``max_per_image``.

        Args:
            classes: Names or labels. The labels of results do not change.

        Raises:
            ResultError: A class does not exist; the message suggests similar names.
        """
        other = copy.copy(self)
        class_mask = torch.zeros(len(self.config.categories), dtype=torch.float32, device="cpu")
        class_mask[self.config.categories.labels(classes)] = 1
        other._class_mask = class_mask
        return other

    def compile(self, **options: Any) -> Self:
        """Return a copy with the same weights whose backbone and branches ``torch.compile`` compiles.

        The first image and new sizes are compiled for up to minutes. Results differ by rounding.

        Args:
            options: Keyword arguments of ``torch.compile``, e.g. ``mode="max-autotune-no-cudagraphs"``.

        Raises:
            DeviceError: The device cannot run compiled code.
        """
        require_compile(self.device)
        other = copy.copy(self)
        build = functools.partial(compile_for_inference, options=options)
        other._optimized = OptimizedNetworkCache(self.network, build)
        return other

    @property
    @neutral_state()
    def inference_network(self) -> Any:
        """Optimized copy of the network (``solo_infer.models.optimized``), which predictions use."""
        return self._optimized.get()

    @overload  # text is a sequence, too, and matches the first signature
    def __call__(  # type: ignore[overload-overlap]
        self,
        source: ImageSource,
        *,
        color: Color = "rgb",
        batch_size: int = 1,
        thresholds: BasePostprocessConfig | None = None,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        source: Images,
        *,
        color: Color = "rgb",
        batch_size: int = 1,
        thresholds: BasePostprocessConfig | None = None,
    ) -> list[Result]: ...

    def __call__(
        self,
        source: ImageSource | Images,
        *,
        color: Color = "rgb",
        batch_size: int = 1,
        thresholds: BasePostprocessConfig | None = None,
    ) -> Result | list[Result]:
        """Segment one image, or a list of images. ``predict`` is the same method.

        Args:
            source: Path, URL, encoded bytes, PIL image, numpy array (H, W, 3) uint8, torch tensor (3, H, W)
                uint8 or float 0..1, or a list or other sequence of these, of any sizes.
            color: Channel order of arrays and tensors, "rgb" or "bgr".
            batch_size: Images that may share a forward pass on a GPU, if their padded sizes are equal. On the
                CPU each image is processed alone, with bit-identical results.
            thresholds: Post-processing settings for this call. Defaults to the model's own.

        Returns:
            A ``Result`` for one image; a list of results, in order, for a list.

        Raises:
            ImageError: An image cannot be read.
            ConfigError: ``batch_size`` is not a positive integer, or the thresholds are of another family.
        """
        sources, is_single = as_sources(source)
        results = list(self.stream(sources, color=color, batch_size=batch_size, thresholds=thresholds))
        return results[0] if is_single else results

    predict = __call__

    def stream(
        self,
        source: ImageSource | Iterable[ImageSource],
        *,
        color: Color = "rgb",
        batch_size: int = 1,
        thresholds: BasePostprocessConfig | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Result]:
        """Segment images in order, holding only ``batch_size`` of them in memory at a time.

        Files of a folder, a pattern or a list are decoded ahead in a background thread, at most two of them.
        Nothing is taken ahead from other iterables.

        Args:
            source: Folder, glob pattern ("photos/**/*.jpg"), or any iterable of the sources of a call.
            color: Channel order of arrays and tensors, "rgb" or "bgr".
            batch_size: Images held in memory, of which those of equal padded size share a forward pass on a
                GPU.
            thresholds: Post-processing settings. Defaults to the model's own.
            on_error: Called with the name and the error of an image that cannot be read, which is then
                skipped. Defaults to raising the error.
        """
        require_positive_ints({"batch_size": batch_size})
        settings = self._settings(thresholds)
        batch: list[PrefetchedImage] = []
        for prefetched in prefetch_images(source, color, on_error):
            batch.append(prefetched)
            if len(batch) == batch_size:
                yield from self._predict_prefetched(batch, settings)
                batch = []
        if batch:
            yield from self._predict_prefetched(batch, settings)

    def _predict_prefetched(
        self, batch: list[PrefetchedImage], thresholds: BasePostprocessConfig
    ) -> Iterator[Result]:
        results = self.predict_batch([prefetched.image for prefetched in batch], thresholds=thresholds)
        for result, prefetched in zip(results, batch, strict=True):
            yield replace(result, timings={**prefetched.timings, **result.timings})

    @neutral_state()
    def predict_batch(
        self,
        batch: Sequence[LoadedImage],
        *,
        thresholds: BasePostprocessConfig | None = None,
        synchronize: bool = False,
    ) -> list[Result]:
        """Segment decoded images, those of equal padded size in one forward pass on a GPU.

        Args:
            batch: Images from ``solo_infer.load_image``.
            thresholds: Post-processing settings. Defaults to the model's own.
            synchronize: Whether to synchronize with the device after each stage; exact timings, but slower.
        """
        check_batch(batch)
        settings = self._settings(thresholds)
        geometries = [plan(image.pixels, self.config.preprocessing) for image in batch]
        results: dict[int, Result] = {}
        for members in forward_groups(geometries, self.device):
            group = self._predict_group(
                [batch[index] for index in members],
                [geometries[index] for index in members],
                settings,
                Stopwatch(self.device if synchronize else None),
            )
            results.update(zip(members, group, strict=True))
        return [results[index] for index in range(len(batch))]

    def _settings(self, thresholds: BasePostprocessConfig | None) -> BasePostprocessConfig:
        """Return the post-processing settings of a call; raise ConfigError for those of another family."""
        config = self.config if thresholds is None else replace(self.config, thresholds=thresholds)
        return config.thresholds

    def _predict_group(
        self,
        batch: Sequence[LoadedImage],
        geometries: Sequence[Geometry],
        thresholds: BasePostprocessConfig,
        stopwatch: Stopwatch,
    ) -> list[Result]:
        """Segment images that share a forward pass."""
        pixels = [image.pixels for image in batch]
        inputs = prepare(pixels, geometries, self.config.preprocessing, self.device, self.dtype)
        stopwatch.mark("preprocess")
        detections = self.detect(inputs, geometries, thresholds=thresholds, stopwatch=stopwatch)
        return make_results(batch, detections, self.config.categories, stopwatch)

    @neutral_state()
    def detect(
        self,
        inputs: Tensor,
        geometries: Sequence[Geometry],
        *,
        thresholds: BasePostprocessConfig | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> list[Detections]:
        """Return the detections of each image of a batch of network inputs.

        Args:
            inputs: (N, 3, H, W) from ``inference.preprocess.prepare``.
            geometries: Sizes of the images.
            thresholds: Post-processing settings. Defaults to the model's own.
            stopwatch: Marks the stages "backbone", "pyramid", "classes", "masks" and "post".
        """
        return self._detect(inputs, geometries, self._settings(thresholds), stopwatch or Stopwatch())

    @abstractmethod
    def _detect(
        self, inputs: Tensor, geometries: Sequence[Geometry], thresholds: Any, stopwatch: Stopwatch
    ) -> list[Detections]:
        """Return the detections of each image of a batch; see ``detect``."""

    def _class_mask_on(self, device: torch.device) -> Tensor | None:
        """Return the class mask on a device, None if no class is excluded."""
        return None if self._class_mask is None else upload(self._class_mask, device)

    @abstractmethod
    def count_candidates(self, inputs: Tensor) -> list[int]:
        """Return the number of (cell or anchor, class) pairs above ``score_thr`` of each image.

        Args:
            inputs: (N, 3, H, W) from ``inference.preprocess.prepare``.
        """

    def __repr__(self) -> str:
        architecture = self.config.architecture
        name = f"{type(self).__name__} {architecture.name} {architecture.backbone}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<{name}, {architecture.num_classes} classes, {dtype} on {self.device}>"
