"""Base class of all segmentation models: loading, batching, prediction."""

from __future__ import annotations

import copy
import functools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from solo_infer.config import BasePostprocessConfig, ModelConfig
from solo_infer.config.display import DISPLAY_THRESHOLD
from solo_infer.config.keywords import CALL_KEYWORDS, explain_keywords
from solo_infer.config.tiling import Tile, as_tiling
from solo_infer.config.validation import require_positive_ints
from solo_infer.data.images import Color, LoadedImage
from solo_infer.data.prefetch import OnError, prefetch_images
from solo_infer.data.sources import Images, ImageSource, StreamSource, as_sources
from solo_infer.inference.cuda_graphs import GraphCache
from solo_infer.inference.detections import Detections
from solo_infer.inference.preprocess import Geometry, plan, prepare
from solo_infer.models.base import SegmentationNetwork
from solo_infer.models.optimized.optimize import OptimizedNetworkCache
from solo_infer.ops.preprocess import upload
from solo_infer.results.result import Result
from solo_infer.results.result_list import ResultList
from solo_infer.runtime.busy_cpus import suitable_threads
from solo_infer.runtime.device import require_compile
from solo_infer.runtime.neutral_state import neutral_state
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.batching import check_batch, forward_groups, make_results, predict_in_batches
from solo_infer.segmenters.loaded_model import LoadedModel, explain_loading
from solo_infer.segmenters.publishing import Publishing
from solo_infer.segmenters.settings import change_settings, check_min_score
from solo_infer.segmenters.tiled import predict_by_tiles

if TYPE_CHECKING:
    from typing_extensions import Self


class Segmenter(Publishing, LoadedModel):
    """Base class of all segmentation models: a network with its configuration.

    Thread-safe: calls are stateless, except that CUDA graphs are serialized by a lock. Copies made by
    ``with_thresholds``, ``with_settings``, ``only`` and ``compile`` share the network, which ``to`` moves; do
    not call it while other threads predict.

    Attributes:
        family: Family of the models, None for the base class.
        config: Architecture, preprocessing, thresholds and categories.
        network: Plain ``torch.nn.Module``, in eval mode.
    """

    @explain_loading
    def __init__(self, config: ModelConfig, network: SegmentationNetwork) -> None:
        super().__init__(config, network)
        self._optimized: OptimizedNetworkCache[Any] = OptimizedNetworkCache(network)
        self._graphs = GraphCache()
        self._class_mask: Tensor | None = None  # (classes,) float32 on the CPU, 0 for excluded classes
        self._display_threshold = DISPLAY_THRESHOLD  # of the results

    def with_thresholds(self, thresholds: BasePostprocessConfig) -> Self:
        """Return a copy with other post-processing settings that shares the network."""
        other = copy.copy(self)
        other.config = replace(self.config, thresholds=thresholds)
        return other

    def with_settings(
        self,
        *,
        thresholds: BasePostprocessConfig | None = None,
        min_score: float | None = None,
        input_size: int | Sequence[int] | None = None,
        across_classes: bool | None = None,
    ) -> Self:
        """Return a copy with other settings of a call that shares the network; see ``__call__``.

        Raises:
            ConfigError: A setting is out of range, or the thresholds are of another family.
        """
        other = copy.copy(self)
        other.config = change_settings(self.config, thresholds, min_score, input_size, across_classes)
        if min_score is not None:
            other._display_threshold = check_min_score(min_score)
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
        from solo_infer.models.optimized.compiled import compile_for_inference

        require_compile(self.device)
        other = copy.copy(self)
        build = functools.partial(compile_for_inference, options=options)
        other._optimized = OptimizedNetworkCache(self.network, build)
        other._graphs = GraphCache()  # CUDA graphs belong to one network
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
        min_score: float | None = None,
        input_size: int | Sequence[int] | None = None,
        across_classes: bool | None = None,
        tile: Tile | None = None,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        source: Images,
        *,
        color: Color = "rgb",
        batch_size: int = 1,
        thresholds: BasePostprocessConfig | None = None,
        min_score: float | None = None,
        input_size: int | Sequence[int] | None = None,
        across_classes: bool | None = None,
        tile: Tile | None = None,
    ) -> ResultList: ...

    @explain_keywords("a model's call", CALL_KEYWORDS)
    def __call__(
        self,
        source: ImageSource | Images,
        *,
        color: Color = "rgb",
        batch_size: int = 1,
        thresholds: BasePostprocessConfig | None = None,
        min_score: float | None = None,
        input_size: int | Sequence[int] | None = None,
        across_classes: bool | None = None,
        tile: Tile | None = None,
    ) -> Result | ResultList:
        """Segment one image, or a list of images. ``predict`` is the same method.

        Args:
            source: Path, URL, encoded bytes, PIL image, numpy array (H, W, 3) uint8, torch tensor (3, H, W)
                uint8 or float 0..1, or a list or other sequence of these, of any sizes.
            color: Channel order of arrays and tensors, "rgb" or "bgr".
            batch_size: Images that may share a forward pass on a GPU, if their padded sizes are equal. On the
                CPU each image is processed alone, with bit-identical results.
            thresholds: Post-processing settings for this call. Defaults to the model's own.
            min_score: Lowest score of the instances to return and to draw, 0..1. Defaults to the model's
                ``filter_thr``; drawings leave out scores below 0.3.
            input_size: Greatest height and width of the scaled image in pixels, multiples of 32: one number
                for both, or (height, width), which are exchanged for images of the other orientation. The
                aspect ratio is kept; YOLACT scales to a square and takes one number. Defaults to the
                size that the model was trained with.
            across_classes: Whether NMS also compares instances of different classes, so that one object is
                not detected as several. Defaults to the model's setting, ``False`` as published.
            tile: (size, overlap) in pixels of the tiles that a large image is cut into. The overlap of a
                size alone is a quarter of it. Defaults to segmenting the image as a whole.

        Returns:
            A ``Result`` for one image; a list of results, in order, for a list.

        Raises:
            ImageError: An image cannot be read.
            ConfigError: A setting is of the wrong type or out of range, or the thresholds are of another
                family.
            KeywordError: A keyword is unknown; the message names the one to use.
        """
        sources, is_single = as_sources(source)
        results = ResultList(
            self.stream(
                sources,
                color=color,
                batch_size=batch_size,
                thresholds=thresholds,
                min_score=min_score,
                input_size=input_size,
                across_classes=across_classes,
                tile=tile,
            )
        )
        return results[0] if is_single else results

    predict = __call__

    @explain_keywords("stream", CALL_KEYWORDS)
    def stream(
        self,
        source: StreamSource | Iterable[StreamSource],
        *,
        color: Color = "rgb",
        batch_size: int = 1,
        frame_stride: int = 1,
        thresholds: BasePostprocessConfig | None = None,
        min_score: float | None = None,
        input_size: int | Sequence[int] | None = None,
        across_classes: bool | None = None,
        tile: Tile | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Result]:
        """Segment images and frames of videos in order, holding only ``batch_size`` of them in memory.

        Frames, and files of a folder, a pattern or a list, are decoded ahead in a background thread, at most
        two of them. Nothing is taken ahead from other iterables.

        Args:
            source: Folder, glob pattern, video (``Video``), index of a camera, or iterable of sources.
            color: Channel order of arrays and tensors, "rgb" or "bgr".
            batch_size: Images held in memory; on a GPU, those of equal padded size share a forward pass.
            frame_stride: Number of frames of a video from one segmented frame to the next.
            thresholds: Post-processing settings. Defaults to the model's own.
            min_score: Lowest score of the instances, as in a call.
            input_size: Size of the network input in pixels, as in a call.
            across_classes: Whether NMS compares instances of different classes, as in a call.
            tile: Tiles that large images are cut into, as in a call.
            on_error: Called with the name and the error of an image that cannot be read, which is skipped,
                or of a video that ends early. Defaults to raising the error.
        """
        require_positive_ints({"batch_size": batch_size, "frame_stride": frame_stride})
        tiling = as_tiling(tile)
        model = self.with_settings(
            thresholds=thresholds, min_score=min_score, input_size=input_size, across_classes=across_classes
        )
        images = prefetch_images(source, color, on_error, frame_stride=frame_stride)
        if tiling is None:
            yield from predict_in_batches(model, images, batch_size)
        else:
            yield from predict_by_tiles(model, images, tiling, batch_size)

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
        geometries = [self._plan(image.pixels) for image in batch]
        results: dict[int, Result] = {}
        for members in forward_groups(geometries, self.device):
            with suitable_threads(self.device):
                group = self._predict_group(
                    [batch[index] for index in members],
                    [geometries[index] for index in members],
                    settings,
                    Stopwatch(self.device if synchronize else None),
                )
            results.update(zip(members, group, strict=True))
        return [results[index] for index in range(len(batch))]

    def _plan(self, pixels: np.ndarray) -> Geometry:
        """Return the sizes of an image (H, W, 3)."""
        return plan(pixels, self.config.preprocessing)

    def _prepare(self, pixels: Sequence[np.ndarray], geometries: Sequence[Geometry]) -> Tensor:
        """Return what ``detect`` takes of images (H, W, 3) uint8 with equal network inputs."""
        return prepare(pixels, geometries, self.config.preprocessing, self.device, self.input_dtype)

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
        inputs = self._prepare([image.pixels for image in batch], geometries)
        stopwatch.mark("preprocess")
        detections = self.detect(inputs, geometries, thresholds=thresholds, stopwatch=stopwatch)
        return make_results(batch, detections, self.config.categories, stopwatch, self._display_threshold)

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
            inputs: (N, 3, H, W) from ``inference.preprocess.prepare``, or what the file of an exported model
                takes.
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
            inputs: (N, 3, H, W) from ``inference.preprocess.prepare``, or what the file of an exported model
                takes.
        """
