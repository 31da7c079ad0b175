"""Segmentation of many images by the workers of a Ray cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from solo_infer import errors
from solo_infer.errors import ClusterError, SoloInferError
from solo_infer.integrations.batch_output import BatchOutput, Part, RunManifest
from solo_infer.integrations.ray import Predictor
from solo_infer.integrations.ray_cluster import (
    Workers,
    connection,
    node_resources,
    plan_workers,
)
from solo_infer.runtime.messages import shortened

IMAGES_PER_FILE = 256
_PARTS_PER_WORKER = 4  # at least, so that workers end at about the same time


@dataclass(frozen=True)
class PartReport:
    """Outcome of one part.

    Attributes:
        file: Name of the file.
        images: Number of images.
        errors: (uri, text) of each image that could not be read.
    """

    file: str
    images: int
    errors: list[tuple[str, str]]


class PartWriter:
    """Class for ``map_batches`` that segments the images of parts and writes their files.

    A worker reads its own images, so that no other process needs a CPU while all workers have theirs.

    Args:
        predictor: Model and settings.
        output: Folder of the run.
        manifest: Facts of the run.
    """

    def __init__(self, predictor: Predictor, output: BatchOutput, manifest: RunManifest) -> None:
        self._predictor, self._output, self._manifest = predictor, output, manifest

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Write the parts of a batch, a JSON text each in "part", and return JSON texts in "report".

        An error of this package is part of the report: Ray would wrap it in a text and repeat the part.
        """
        return {"report": [json.dumps(self._report(json.loads(str(text)))) for text in batch["part"]]}

    def _report(self, values: dict[str, Any]) -> dict[str, Any]:
        try:
            return asdict(self.write(Part(values["file"], tuple(values["uris"]))))
        except SoloInferError as error:
            return {"error_type": type(error).__name__, "message": str(error)}

    def write(self, part: Part) -> PartReport:
        """Segment the images of a part, and write its file.

        Raises:
            ClusterError: Several workers have died of this part.
            SoloInferError: The model cannot be loaded, or the file cannot be written.
        """
        self._output.begin_attempt(part)
        sources = [self._manifest.source_of(uri) for uri in part.uris]
        rows = self._predictor.rows(sources, part.uris)
        self._output.write_part(part, rows, self._manifest)
        self._output.end_attempts(part)
        failed = [(uri, row["error"]) for uri, row in zip(part.uris, rows, strict=True) if row["error"]]
        return PartReport(part.file, len(rows), failed)


@dataclass(frozen=True)
class BatchRun:
    """A run on a cluster, which continues where an earlier one was stopped.

    Attributes:
        predictor: Model and settings.
        output: Folder of the run.
        manifest: Facts of the run.
        workers: Number of worker processes, None for the default of ``plan_workers``.
        address: Address of the cluster; see ``ray_cluster.connection``.
        device: Device of the models, as in ``plan_workers``.
        verbose: Whether to show Ray's own messages.
    """

    predictor: Predictor
    output: BatchOutput
    manifest: RunManifest
    workers: int | None = None
    address: str | None = None
    device: str | None = None
    verbose: bool = False

    def run(
        self,
        uris: Sequence[str],
        *,
        images_per_file: int | None = None,
        retry_errors: bool = False,
        on_start: Callable[[int, int, Workers | None], None],
        on_part: Callable[[PartReport], None],
    ) -> None:
        """Segment the images that no complete file has.

        Args:
            uris: Names of the images.
            images_per_file: Number of images per file. Defaults to ``IMAGES_PER_FILE``, or fewer if there are
                few images per worker.
            retry_errors: Whether to repeat files with images that could not be read.
            on_start: Called with the number of images that are done, the number of all images, and the
                workers, None if nothing is left to do.
            on_part: Called with the report of each part.

        Raises:
            ResultError: The folder holds another run, or cannot be written.
            ClusterError: The cluster cannot be used, is too small, or its workers failed.
            SoloInferError: The model cannot be loaded by a worker.
        """
        with self.output.lock():
            parts = self.output.begin(self.manifest, uris)
            self.output.remove_leftovers()
            done = self.output.done(parts, self.manifest, retry_errors=retry_errors)
            known = {uri for part in parts for uri in part.uris}
            new = [uri for uri in dict.fromkeys(uris) if uri not in known]
            if not new and len(done) == len(parts):
                on_start(len(known), len(known), None)
                return
            with connection(self.address, verbose=self.verbose) as ray:
                workers = plan_workers(node_resources(ray), self.workers, self.device)
                size = images_per_file or _images_per_file(len(new), workers.count)
                parts = self.output.extend(parts, new, size)
                pending = [part for part in parts if part.file not in done]
                total = len(known) + len(new)
                on_start(total - sum(len(part.uris) for part in pending), total, workers)
                for report in self._reports(ray, pending, workers):
                    on_part(report)
                self.output.remove_leftovers()
                self._require_written(pending)

    def _reports(self, ray: Any, parts: Sequence[Part], workers: Workers) -> Iterator[PartReport]:
        """Yield the report of each part as it is written."""
        if not parts:
            return
        items = [{"part": json.dumps(asdict(part))} for part in parts]
        count = min(workers.count, len(parts))
        _hide_progress(ray, self.verbose)
        reports = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            PartWriter,
            fn_constructor_args=(self.predictor, self.output, self.manifest),
            batch_size=1,
            batch_format="numpy",
            concurrency=(_startable(ray, workers, count), count),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus or None,
            runtime_env={"env_vars": workers.environment()},
        )
        try:
            for row in reports.iter_rows():
                yield _read_report(json.loads(row["report"]))
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"The workers of the Ray cluster failed ({type(error).__name__}: {shortened(error)}). Files "
                "that are complete are kept: run the command again to continue, with --verbose for the "
                "messages of Ray."
            ) from error

    def _require_written(self, parts: Sequence[Part]) -> None:
        missing = {part.file for part in parts} - self.output.names()
        if missing:
            raise ClusterError(
                f"{len(missing)} of {len(parts)} files are not in {self.output.location}: workers on other "
                "machines have written them elsewhere. Choose a folder that all machines share, or a URI "
                "such as s3://bucket/folder."
            )


def _read_report(values: dict[str, Any]) -> PartReport:
    """Return the report of a worker, or raise the error that it has reported."""
    if "error_type" in values:
        raise getattr(errors, values["error_type"], ClusterError)(values["message"])
    return PartReport(values["file"], values["images"], [(uri, text) for uri, text in values["errors"]])


def _images_per_file(images: int, workers: int) -> int:
    return max(1, min(IMAGES_PER_FILE, -(-images // (_PARTS_PER_WORKER * workers))))


def _startable(ray: Any, workers: Workers, count: int) -> int:
    """Return the number of workers that fit into the CPUs and GPUs that are not in use, at least 1."""
    available = ray.available_resources()
    free = int(available.get("CPU", 0) // workers.cpus)
    if workers.gpus:
        free = min(free, int(available.get("GPU", 0)))
    return max(1, min(count, free))


def _hide_progress(ray: Any, verbose: bool) -> None:
    """Hide the progress bars and the messages of Ray Data, in whose place ours are shown."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if not verbose:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
