"""What all families of models share: from any sources to results, on a device, in a dtype."""

from __future__ import annotations

import copy
import functools
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, overload

import torch
from torch import Tensor

from solo_infer.config import ArchitectureConfig, BasePostprocessConfig, ModelConfig
from solo_infer.data import images
from solo_infer.data.images import Color, ImageSource, LoadedImage
from solo_infer.data.prefetch import Loaded, OnError, load_all
from solo_infer.errors import ConfigError, ImageError
from solo_infer.inference.preprocess import Geometry, plan, prepare_batch
from solo_infer.inference.solo import Detections
from solo_infer.models.base import SegmentationNetwork as Network
from solo_infer.models.optimized.optimize import InferenceTwin, compiled_twin
from solo_infer.results.result import Result
from solo_infer.runtime.device import require_compile, require_dtype, resolve_device, resolve_dtype
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.weights.checkpoint import Checkpoint
from solo_infer.weights.load import load_checkpoint
from solo_infer.weights.save import save_checkpoint

if TYPE_CHECKING:
    from typing_extensions import Self

Images = list[ImageSource] | tuple[ImageSource, ...]


class Segmenter(ABC):
    """A network with its configuration: images in, results out.

    Calls keep no state, but for CUDA graphs, which they take turns with: any number of threads may share
    one model. ``to`` changes it, and is for the one who set it up.

    Attributes:
        config: Architecture, preprocessing, thresholds and categories.
        network: The ``torch.nn.Module``, in eval mode.
    """

    architecture: ClassVar[type[ArchitectureConfig]]  # of the configurations that this class takes
    network: Network

    def __init__(self, config: ModelConfig, network: Network) -> None:
        self._require_own(config.architecture)
        self.config = config
        self.network = network
        self._twin: InferenceTwin[Any] = InferenceTwin(network)
        self._wanted: Tensor | None = None  # (classes,) float32, 0 or 1

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
            name_or_path: A published model (``solo_infer.available_models()``), a checkpoint file (mmdet's,
                the authors', a state dict, safetensors), a directory of ``save_pretrained``, or a Hub repo
                (owner/name) that holds such a directory.
            device: "cpu", "cuda", "cuda:1", ...; CUDA if there is any, else the CPU, if not given.
            dtype: What the network computes in: float32, float16 or bfloat16. Scores and masks are
                always decided in float32.
            thresholds: Settings of the post-processing; the model's own if not given.
            config: The whole configuration, where the file does not tell.
            revision: Branch, tag or commit of a Hub repo.
            offline: Never touch the network; the environment decides if not given.

        Raises:
            WeightsError: The weights cannot be found, fetched, read or fitted to a model.
            OfflineError: They would have to be downloaded, but must not.
            ConfigError: They are of another family of models (``load_model`` takes any), or the
                ``config.json`` beside them is wrong.
            DeviceError: The device or dtype is not available.
        """
        where, kind = resolve_device(device), resolve_dtype(dtype)
        checkpoint = load_checkpoint(
            name_or_path,
            config=config,
            revision=revision,
            offline=offline,
            family=cls.architecture.family,
        )
        model = cls.from_checkpoint(checkpoint).to(where, kind)
        return model.with_thresholds(thresholds) if thresholds is not None else model

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Return the model of a checkpoint, on the CPU. It takes over the network of the checkpoint.

        Raises:
            ConfigError: The checkpoint is of another family of models.
        """
        network = checkpoint.network.requires_grad_(False).to(memory_format=torch.channels_last)
        return cls(checkpoint.config, network)

    @classmethod
    def _require_own(cls, architecture: ArchitectureConfig) -> None:
        """Raise ConfigError if an architecture is of another family."""
        if not isinstance(architecture, cls.architecture):
            raise ConfigError(
                f"{cls.__name__} takes no {architecture.name} model: use the class of its family, or "
                "load_model, which takes any."
            )

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Move the model to a device, a dtype or both, in place, and return it.

        Raises:
            DeviceError: The device is not available, or cannot compute in the dtype.
        """
        where = self.device if device is None else resolve_device(device)
        kind = self.dtype if dtype is None else resolve_dtype(dtype)
        require_dtype(where, kind)
        self.network.to(where, kind)
        return self

    def with_thresholds(self, thresholds: BasePostprocessConfig) -> Self:
        """Return a model with other thresholds that shares this one's network."""
        other = copy.copy(self)
        other.config = replace(self.config, thresholds=thresholds)
        return other

    def only(self, classes: str | int | Iterable[str | int]) -> Self:
        """Return a model that finds some of its classes only and shares this one's network.

        Unlike ``Result.filter``, the others take no place among the best candidates and detections.

        Args:
            classes: Names or labels; labels of results stay what they are.

        Raises:
            ResultError: There is no such class; the message suggests similar names.
        """
        other = self.with_thresholds(self.config.thresholds)
        wanted = torch.zeros(len(self.config.categories))
        wanted[self.config.categories.labels(classes)] = 1
        other._wanted = wanted
        return other

    def compile(self, **options: Any) -> Self:
        """Return a model with the same weights, whose network's stages ``torch.compile`` compiles.

        Backbone and branches are compiled when an image first comes, and again for new sizes, which takes up
        to minutes; post-processing is not. Results differ by rounding.

        Args:
            options: Of ``torch.compile``, for instance ``mode="max-autotune-no-cudagraphs"``.

        Raises:
            DeviceError: The device cannot run what the compiler makes.
        """
        require_compile(self.device)
        other = copy.copy(self)
        other._twin = InferenceTwin(self.network, functools.partial(compiled_twin, options=options))
        return other

    @property
    def inference_network(self) -> Any:
        """The network as it predicts: the same function, faster (``solo_infer.models.optimized.optimize``)."""
        return self._twin.get()

    @overload
    def __call__(
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
        """Segment one image, or a list of images.

        Args:
            source: A path, URL, encoded bytes, PIL image, numpy array (H, W, 3) uint8, torch tensor
                (3, H, W) uint8 or float 0..1, or a list or tuple of these, of any sizes.
            color: Channel order of arrays and tensors, "rgb" or "bgr".
            batch_size: Images that share a forward pass on a GPU, if their padded sizes are equal. On the
                CPU each image goes alone, and its result is the same to the last bit.
            thresholds: Settings of the post-processing for this call.

        Returns:
            A ``Result`` for one image; a list of them, in order, for a list.

        Raises:
            ImageError: An image cannot be read.
        """
        single = images.is_single_source(source)
        if not single and not isinstance(source, list | tuple):
            raise ImageError(
                f"{type(source).__name__} is no image: expected a path, URL, bytes, PIL image, array, "
                "tensor, or a list of these. For folders, globs and iterators use stream()."
            )
        sources = cast(Images, [source] if single else source)
        results = list(self.stream(sources, color=color, batch_size=batch_size, thresholds=thresholds))
        return results[0] if single else results

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
        """Segment images one after another, in order, holding only ``batch_size`` of them at a time.

        The files of a folder, a pattern or a list are decoded ahead in a thread of their own, two at most;
        from any other iterable nothing is taken before its turn.

        Args:
            source: A folder, a glob pattern ("photos/**/*.jpg"), or any iterable of what a call takes.
            color: Channel order of arrays and tensors, "rgb" or "bgr".
            batch_size: Images that are held at a time, of which those of equal padded size share a forward
                pass on a GPU.
            thresholds: Settings of the post-processing.
            on_error: Called with the name and error of an image that cannot be read, which is then left
                out; if not given, the error is raised.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: expected at least 1.")
        settings = self.config.thresholds
        if thresholds is not None:
            settings = self.with_thresholds(thresholds).config.thresholds  # which checks their family
        waiting: list[Loaded] = []
        for loaded in load_all(source, color, on_error):
            waiting.append(loaded)
            if len(waiting) == batch_size:
                yield from self._segment(waiting, settings)
                waiting = []
        if waiting:
            yield from self._segment(waiting, settings)

    def _segment(
        self,
        batch: list[Loaded],
        thresholds: BasePostprocessConfig,
        synchronized: bool = False,
    ) -> list[Result]:
        """Segment loaded images, in groups that share a forward pass.

        Args:
            batch: Images and how long their loading took.
            thresholds: Settings of the post-processing.
            synchronized: Time each stage to its end, for benchmarks.
        """
        geometries = [plan(loaded.pixels, self.config.preprocessing) for loaded, _ in batch]
        results: dict[int, Result] = {}
        for members in self._groups(geometries):
            found = self._segment_group(
                [batch[index] for index in members],
                [geometries[index] for index in members],
                thresholds,
                synchronized,
            )
            results.update(zip(members, found, strict=True))
        return [results[index] for index in range(len(batch))]

    def _groups(self, geometries: list[Geometry]) -> list[list[int]]:
        """Return the indices of the images of each forward pass.

        GroupNorm and the coordinate channels see the padding, so that only images of equal padded size
        may share one. On the CPU each image goes alone: a batch gains nothing there, and its convolutions
        round otherwise, which can move a score past a threshold.
        """
        if self.device.type == "cpu":
            return [[index] for index in range(len(geometries))]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, geometry in enumerate(geometries):
            groups[geometry.padded].append(index)
        return list(groups.values())

    @torch.no_grad()
    def _segment_group(
        self,
        batch: list[Loaded],
        geometries: list[Geometry],
        thresholds: BasePostprocessConfig,
        synchronized: bool,
    ) -> list[Result]:
        watch = Stopwatch(self.device if synchronized else None)
        pixels = [loaded.pixels for loaded, _ in batch]
        inputs = prepare_batch(pixels, geometries, self.config.preprocessing, self.device, self.dtype)
        watch.mark("preprocess")
        detections = self._find(inputs, geometries, thresholds, watch)
        seconds = {stage: spent / len(batch) for stage, spent in watch.seconds.items()}
        return [
            self._result(loaded, found, {**loading, **seconds})
            for (loaded, loading), found in zip(batch, detections, strict=True)
        ]

    @abstractmethod
    def _find(
        self, inputs: Tensor, geometries: list[Geometry], thresholds: BasePostprocessConfig, watch: Stopwatch
    ) -> list[Detections]:
        """Return the detections of each image of a batch of network inputs (N, 3, H, W).

        The stages that ``watch`` marks are "backbone", "pyramid", "classes", "masks" and "post".
        """

    @abstractmethod
    def class_scores(self, inputs: Tensor) -> Tensor:
        """Return the scores (N, places, classes) in 0..1 of network inputs (N, 3, H, W).

        Those above ``score_thr`` are the candidates.
        """

    def _result(self, loaded: LoadedImage, found: Detections, timings: dict[str, float]) -> Result:
        height, width = loaded.pixels.shape[:2]
        return Result(
            scores=found.scores,
            labels=found.labels,
            boxes=found.boxes,
            packed_masks=found.packed_masks,
            image_size=(height, width),
            categories=self.config.categories,
            image=loaded.pixels,
            source=loaded.name,
            timings=timings,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``config.json`` and ``model.safetensors``, which ``from_pretrained`` reads.

        Raises:
            CacheError: The directory cannot be written.
        """
        return save_checkpoint(self.config, self.network.state_dict(), Path(folder))

    def __repr__(self) -> str:
        architecture = self.config.architecture
        what = f"{type(self).__name__} {architecture.name} {architecture.backbone}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<{what}, {architecture.num_classes} classes, {dtype} on {self.device}>"
