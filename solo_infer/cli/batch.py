"""``solo-infer batch``: segment many images on a Ray cluster into Parquet files."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options
from solo_infer.cli.sources import expand
from solo_infer.cli.terminal import info, print_error, print_text, usage_error
from solo_infer.errors import ImageError, SoloInferError
from solo_infer.runtime import environment
from solo_infer.runtime.messages import escaped, quoted
from solo_infer.runtime.progress import progress_bar
from solo_infer.weights.manifest import DEFAULT_MODEL

if TYPE_CHECKING:
    from solo_infer.integrations.batch_output import BatchOutput, RunManifest
    from solo_infer.integrations.batch_run import PartReport
    from solo_infer.integrations.ray import Predictor
    from solo_infer.integrations.ray_cluster import Workers

SUMMARY = "Segment many images on a Ray cluster into Parquet files"
EXAMPLES = (
    'solo-infer batch "photos/**/*.jpg" --output run --model tiny',
    "solo-infer batch s3://bucket/photos --output s3://bucket/run --model decoupled_r50_3x --address auto",
    "solo-infer batch --list images.txt --output run --model tiny --workers 8",
)
_MAX_SHOWN = 20  # images with errors of which messages are printed


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "batch", SUMMARY, run, EXAMPLES)
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="image file, folder, glob pattern, URL, or one of an object store such as s3://bucket/photos",
    )
    parser.add_argument(
        "--list",
        type=options.path,
        metavar="FILE",
        help="read further sources from this text file, one per line, - for standard input",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="folder or URI of the Parquet files; the same command continues a run that was stopped",
    )
    model = parser.add_argument_group("model")
    options.add_model(model, DEFAULT_MODEL)
    model.add_argument("--offline", action="store_true", help="do not access the network")
    detections = parser.add_argument_group("detections")
    options.add_classes(detections, "detect only these classes")
    options.add_min_score(detections, "leave out instances with a lower score (default: the model's setting)")
    options.add_nms(detections)
    options.add_scaling(detections)
    options.add_tile(detections)
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster: auto for the one of this machine, HOST:PORT, or local for a new one "
        "(default: RAY_ADDRESS, else the one of this machine, else a new one)",
    )
    cluster.add_argument(
        "--workers",
        type=options.positive_int,
        metavar="N",
        help="processes that segment images (default: one per GPU, or one per 4 CPUs)",
    )
    cluster.add_argument(
        "--images-per-file",
        type=options.positive_int,
        metavar="N",
        help="images per Parquet file, the unit of work (default: 256, fewer if there are few images)",
    )
    cluster.add_argument(
        "--retry-errors", action="store_true", help="repeat files with images that could not be read"
    )
    device = parser.add_argument_group("device of the workers")
    options.add_device(device)
    options.add_dtype(device)
    options.add_batch_size(device)


def run(args: argparse.Namespace) -> int:
    """Segment images; return 1 if any of them failed."""
    if args.tile_overlap and not args.tile:
        return usage_error("--tile-overlap requires --tile")
    if not args.sources and not args.list:
        return usage_error("expected a SOURCE or --list FILE")
    report = _Report()
    with environment.set_environment({environment.OFFLINE: "1"} if args.offline else {}):
        uris = _expand(args, report)
        if uris:
            _segment(args, uris, report)
    if report.failed:
        print_error(f"{report.failed} failed, {report.done} done")
    return 1 if report.failed else 0


class _Report:
    """Counts images, and prints the first errors."""

    def __init__(self) -> None:
        self.failed = self.done = 0

    def __call__(self, name: str, error: SoloInferError | str) -> None:
        from tqdm import tqdm

        self.failed += 1
        if self.failed <= _MAX_SHOWN:
            with tqdm.external_write_mode(file=sys.stderr):
                print_error(f"{escaped(name)}: {error}" if isinstance(error, str) else error)
        if self.failed == _MAX_SHOWN:
            info('further messages are in the column "error" of the files')


def _expand(args: argparse.Namespace, report: _Report) -> list[str]:
    """Return the names of all images, each once.

    Raises:
        ImageError: The list cannot be read, or a source is a video.
    """
    from solo_infer.data.video_sources import is_video

    entered = [*args.sources, *(_read_list(args.list) if args.list else [])]
    names = expand(entered, Path("."), report).names
    for name in filter(is_video, names):
        raise ImageError(f"{quoted(name, 200)} is a video: pass images here, and videos to predict.")
    return names


def _read_list(path: Path) -> list[str]:
    try:
        text = sys.stdin.read() if path == Path("-") else path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ImageError(
            f"--list {quoted(path, 200)} cannot be read ({error}): expected a UTF-8 text file with one "
            "source per line."
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _segment(args: argparse.Namespace, uris: list[str], report: _Report) -> None:
    from solo_infer.integrations.batch_output import BatchOutput
    from solo_infer.integrations.batch_run import BatchRun
    from solo_infer.integrations.ray_cluster import require_ray
    from solo_infer.results.formats.parquet import pyarrow

    require_ray()
    pyarrow()
    output = BatchOutput(args.output)
    predictor, manifest = _describe(args)
    batch = BatchRun(
        predictor, output, manifest, args.workers, args.address, args.device, verbose=args.verbose
    )
    progress = _Progress(output, report, quiet=args.quiet)
    try:
        batch.run(
            uris,
            images_per_file=args.images_per_file,
            retry_errors=args.retry_errors,
            on_start=progress.start,
            on_part=progress.add,
        )
    finally:
        progress.close()


def _describe(args: argparse.Namespace) -> tuple[Predictor, RunManifest]:
    """Return the predictor of the workers, and the facts of the run, after loading the model here."""
    from solo_infer.integrations.batch_output import RunManifest
    from solo_infer.integrations.ray import Predictor
    from solo_infer.segmenters.auto import load_model
    from solo_infer.segmenters.fingerprint import fingerprint

    name = args.model or DEFAULT_MODEL
    tile = options.tile(args)
    size = args.input_size
    # One dtype for all workers, which may have different processors.
    dtype = options.network_dtype(args.dtype, args.device)
    loaded = load_model(name, device="cpu", dtype=dtype)
    model = options.with_settings(loaded, args)
    labels = None if args.classes is None else model.config.categories.labels(args.classes)
    mark = fingerprint(model)
    predictor = Predictor(
        os.path.abspath(name) if os.path.exists(name) else name,
        device=args.device,
        dtype=dtype,
        thresholds=model.config.thresholds,
        classes=labels,
        input_size=size[0] if size is not None and len(size) == 1 else size,
        tile=tile,
        batch_size=args.batch_size,
        expected_fingerprint=mark,
    )
    settings = {
        "classes": args.classes,
        "min_score": args.min_score,
        "nms": args.nms,
        "nms_iou": args.nms_iou,
        "across_classes": args.across_classes,
        "input_size": size,
        "tile": None if tile is None else list(tile) if isinstance(tile, tuple) else tile,
        "dtype": dtype,
    }
    return predictor, RunManifest(name, mark, settings, model.config.categories, os.getcwd())


class _Progress:
    """Shows the progress of a run, and its summary.

    Args:
        output: Folder of the run.
        report: Called with each image that could not be read.
        quiet: Whether to show errors only.
    """

    def __init__(self, output: BatchOutput, report: _Report, *, quiet: bool) -> None:
        self._output, self._report, self._quiet = output, report, quiet
        self._bar: Any = None
        self._images, self._start = 0, 0.0

    def start(self, done: int, total: int, workers: Workers | None) -> None:
        """Print what there is to do, and show the bar."""
        self._start = time.monotonic()
        if done:
            info(f"{done} of {total} images are done already")
        if workers is not None:
            threads = f"{workers.cpus} thread{'' if workers.cpus == 1 else 's'}"
            gpus = ", a GPU" if workers.gpus else ""
            info(f"{workers.count} worker{'' if workers.count == 1 else 's'} with {threads}{gpus} each")
            self._bar = progress_bar(total=total, initial=done, unit="image", enabled=not self._quiet)

    def add(self, part: PartReport) -> None:
        """Count the images of a part, and report those that could not be read."""
        self._images += part.images
        self._bar.update(part.images)
        for uri, text in part.errors:
            self._report(uri, text)
        self._report.done += part.images - len(part.errors)

    def close(self) -> None:
        """Remove the bar, and print the summary."""
        if self._bar is not None:
            self._bar.close()
            seconds = max(time.monotonic() - self._start, 1e-9)
            print_text(
                f"{self._images} images in {seconds:.1f} s, {self._images / seconds:.2f} images/s -> "
                f"{escaped(self._output.location)}"
            )
