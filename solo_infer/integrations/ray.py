"""Ray Data: a class for ``Dataset.map_batches`` that segments the images of a batch."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from solo_infer.config import BasePostprocessConfig, ModelConfig
from solo_infer.config.tiling import Tile, as_tiling
from solo_infer.config.validation import require, require_positive_ints
from solo_infer.data.images import Color, LoadedImage, load_image
from solo_infer.data.prefetch import PrefetchedImage
from solo_infer.errors import ImageError, OfflineError, WeightsError
from solo_infer.results.formats.parquet import error_row, pyarrow, to_row, to_table
from solo_infer.results.result import Result
from solo_infer.segmenters.auto import load_model
from solo_infer.segmenters.base import Segmenter
from solo_infer.segmenters.batching import predict_in_batches
from solo_infer.segmenters.fingerprint import fingerprint
from solo_infer.segmenters.tiled import predict_by_tiles

INPUT_COLUMNS = ("image", "bytes", "path")  # the first one that a batch has is read


class Predictor:
    """Class for ``ray.data.Dataset.map_batches`` that segments the images of each batch.

    It loads its model in the first call, so that each worker loads it once and the object itself is small and
    can be pickled. It does not need Ray: a call takes and returns plain data.

        images = ray.data.read_binary_files("photos", include_paths=True)
        rows = images.map_batches(
            Predictor, fn_constructor_args=["tiny"], batch_size=16, concurrency=4, num_cpus=2
        )

    Args:
        model: Name, path or Hub repo id of the model, as in ``load_model``.
        device: Device, as in ``load_model``. Defaults to CUDA if the worker has a card, else the CPU.
        dtype: Dtype of the network, as in ``load_model``.
        thresholds: Post-processing settings. Defaults to the model's own.
        config: Configuration of the model, as in ``load_model``.
        revision: Branch, tag or commit of a Hub repo.
        offline: Whether network access is forbidden. Defaults to the environment of the worker.
        classes: Names or labels of the classes to detect. Defaults to all.
        min_score: Lowest score of the instances, as in a model's call.
        input_size: Size of the network input in pixels, as in a model's call.
        across_classes: Whether NMS compares instances of different classes, as in a model's call.
        tile: Tiles that large images are cut into, as in a model's call.
        color: Channel order of the column "image", "rgb" or "bgr".
        batch_size: Images in memory at a time; on a GPU, those of equal padded size share a forward pass.
        readers: Number of images that are read ahead, each by a thread of its own.
        expected_fingerprint: ``fingerprint`` of the model, which a worker compares with that of the model it
            has loaded. Defaults to no check.

    Raises:
        ConfigError: A setting is of the wrong type or out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str | None = None,
        dtype: str = "float32",
        thresholds: BasePostprocessConfig | None = None,
        config: ModelConfig | None = None,
        revision: str = "main",
        offline: bool | None = None,
        classes: str | int | Iterable[str | int] | None = None,
        min_score: float | None = None,
        input_size: int | Sequence[int] | None = None,
        across_classes: bool | None = None,
        tile: Tile | None = None,
        color: Color = "rgb",
        batch_size: int = 1,
        readers: int = 4,
        expected_fingerprint: str | None = None,
    ) -> None:
        require_positive_ints({"batch_size": batch_size, "readers": readers})
        require(
            isinstance(model, str | os.PathLike),
            f"model is a {type(model).__name__}: expected a name or path.",
        )
        self.name = os.fsdecode(model)
        self._loading = {
            "device": device,
            "dtype": dtype,
            "thresholds": thresholds,
            "config": config,
            "revision": revision,
            "offline": offline,
        }
        self._settings = {
            "min_score": min_score,
            "input_size": input_size,
            "across_classes": across_classes,
        }
        self._classes = classes if classes is None or isinstance(classes, str | int) else list(classes)
        self._tiling, self._color = as_tiling(tile), color
        self._batch_size, self._readers = batch_size, readers
        self._expected = expected_fingerprint
        self._start()

    def _start(self) -> None:
        self._model: Segmenter | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_model", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def model(self) -> Segmenter:
        """Model, which is loaded at the first access.

        Raises:
            WeightsError: The weights cannot be loaded, or are not those of ``expected_fingerprint``.
            ConfigError: The model does not have one of the settings.
            ResultError: The model does not have one of the classes.
            DeviceError: The device or dtype is not available.
        """
        with self._lock:
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> Segmenter:
        loading: dict[str, Any] = self._loading
        settings: dict[str, Any] = self._settings
        model = load_model(self.name, **loading).with_settings(**settings)
        if self._expected is not None and fingerprint(model) != self._expected:
            raise WeightsError(
                f"Model {self.name!r} on this worker is another one than that of the run: expected the "
                f"fingerprint {self._expected[:12]}..., got {fingerprint(model)[:12]}.... Install the same "
                "version of solo_infer and the same weights on all machines."
            )
        return model if self._classes is None else model.only(self._classes)

    def __call__(self, batch: Any) -> Any:
        """Segment the images of a batch.

        Args:
            batch: Columns by name: a dict of arrays or lists, or a ``pyarrow.Table``. The images are those of
                the column "image" (arrays (H, W, 3) uint8, as ``read_images`` gives), else "bytes" (encoded
                files, as ``read_binary_files`` gives), else "path" (paths, URLs or URIs, read here). A column
                "path" or "uri" names them.

        Returns:
            ``pyarrow.Table`` of one row for each image: the columns of ``parquet.arrow_schema``, and the
            other columns of the batch. An image that cannot be read has a text in "error".

        Raises:
            ImageError: The batch has no column of images.
            SoloInferError: The model cannot be loaded; see ``model``.
        """
        columns = _as_columns(batch)
        name = next((name for name in INPUT_COLUMNS if name in columns), None)
        if name is None:
            raise ImageError(
                f"The batch has the columns {', '.join(columns) or 'of nothing'}: expected one of "
                f"{', '.join(INPUT_COLUMNS)}, as ray.data.read_images and read_binary_files give them."
            )
        sources = [_as_source(value) for value in columns[name]]
        names = columns.get("uri", columns.get("path", [""] * len(sources)))
        table = to_table(self.rows(sources, [_as_text(value) for value in names]))
        pa = pyarrow()
        for column, values in columns.items():
            if column not in (*INPUT_COLUMNS, *table.column_names):
                table = table.append_column(column, pa.array(values))
        return table

    def rows(self, sources: Sequence[Any], uris: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row for each image, in order; see ``parquet.to_row`` and ``parquet.error_row``.

        Args:
            sources: Images that ``load_image`` accepts.
            uris: Their names.
        """
        model, rows, loaded = self.model, [dict[str, Any]() for _ in sources], deque[int]()

        def images() -> Iterator[PrefetchedImage]:
            for index, future in enumerate(self._read_ahead(sources)):
                try:
                    image = future.result()
                except (ImageError, OfflineError) as error:
                    rows[index] = error_row(uris[index], error)
                    continue
                loaded.append(index)
                yield PrefetchedImage(image, {})

        for result in self._predict(model, images()):
            index = loaded.popleft()
            rows[index] = to_row(result, uris[index])
        return rows

    def _predict(self, model: Segmenter, images: Iterator[PrefetchedImage]) -> Iterator[Result]:
        if self._tiling is None:
            return predict_in_batches(model, images, self._batch_size)
        return predict_by_tiles(model, images, self._tiling, self._batch_size)

    def _read_ahead(self, sources: Sequence[Any]) -> Iterator[Future[LoadedImage]]:
        """Yield the loading of each image in order, while the next ones are read."""
        pending: deque[Future[LoadedImage]] = deque()
        with ThreadPoolExecutor(self._readers, thread_name_prefix="solo_infer-read") as pool:
            try:
                for source in sources:
                    pending.append(pool.submit(load_image, source, color=self._color))
                    if len(pending) > self._readers:
                        yield pending.popleft()
                while pending:
                    yield pending.popleft()
            finally:
                for future in pending:
                    future.cancel()


def _as_columns(batch: Any) -> dict[str, list[Any]]:
    """Return the columns of a batch as lists."""
    if isinstance(batch, Mapping):
        return {str(name): list(values) for name, values in batch.items()}
    if hasattr(batch, "to_pydict"):  # a pyarrow.Table
        columns: dict[str, list[Any]] = batch.to_pydict()
        return columns
    raise ImageError(
        f"A batch of type {type(batch).__name__}: expected a dict of columns, or a pyarrow.Table. Pass "
        'batch_format="numpy" to map_batches.'
    )


def _as_source(value: Any) -> Any:
    """Return a value of a column as a source; scalars of numpy become those of Python."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list):  # pixels in a pyarrow.Table
        array = np.asarray(value)
        return array.astype(np.uint8) if array.dtype.kind in "iu" else array
    return value


def _as_text(value: Any) -> str:
    return "" if value is None else str(value)
