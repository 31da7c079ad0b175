"""``solo-infer predict``: segment images into drawings, JSON and the formats of ``cli/outputs.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options, outputs, shards, video
from solo_infer.cli.sources import Sources, expand
from solo_infer.cli.terminal import (
    JsonArray,
    JsonLines,
    info,
    print_error,
    print_text,
    usage_error,
)
from solo_infer.config.display import DISPLAY_THRESHOLD
from solo_infer.errors import (
    CacheError,
    ConfigError,
    DownloadError,
    OfflineError,
    ResultError,
    SoloInferError,
)
from solo_infer.runtime import environment
from solo_infer.runtime.messages import escaped
from solo_infer.runtime.output_files import refuse_overwriting
from solo_infer.runtime.progress import progress_bar
from solo_infer.weights.manifest import DEFAULT_MODEL, EMBEDDED_MODEL

if TYPE_CHECKING:
    from solo_infer.cli.outputs import Writers
    from solo_infer.cli.shards import Shard
    from solo_infer.config.tiling import Tile
    from solo_infer.results.result import Result
    from solo_infer.results.writers import ImageFolder
    from solo_infer.segmenters.base import Segmenter

SUMMARY = "Segment images and videos: draw instances, save COCO results, print JSON"
EXAMPLES = (
    "solo-infer predict street.jpg",
    'solo-infer predict "photos/**/*.jpg" --classes person car --min-score 0.5 --output segmented',
    "solo-infer predict photos --no-save --save-json results.json",
    "solo-infer predict photos --no-save --save-dataset dataset.json --save-yolo labels --save-csv table.csv",
    "solo-infer predict clip.mp4 --output drawn.mp4 --frame-stride 2",
)
PROGRESS_FROM = 6  # number of images from which a progress bar is shown


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "predict", SUMMARY, run, EXAMPLES)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="IMAGE",
        help="image or video file, folder, glob pattern, URL, number of a camera, or - for standard input",
    )
    model = parser.add_argument_group("model")
    options.add_model(model, f"{DEFAULT_MODEL}, or {EMBEDDED_MODEL} if that is unavailable")
    model.add_argument("--offline", action="store_true", help="do not access the network")
    detections = parser.add_argument_group("detections")
    options.add_classes(detections, "detect only these classes")
    options.add_min_score(
        detections,
        "leave out instances with a lower score "
        f"(default: {DISPLAY_THRESHOLD} in drawings and summary lines, 0 in JSON)",
    )
    options.add_nms(detections)
    options.add_scaling(detections)
    video.add_options(detections)
    options.add_tile(detections)
    shards.add_option(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=options.path,
        default=Path("."),
        metavar="DIR",
        help="folder for the drawings, or file (.mp4, ...) for that of one video (default: current folder)",
    )
    output.add_argument("--no-save", action="store_true", help="save no drawings")
    output.add_argument("--boxes", action="store_true", help="draw boxes in addition to masks")
    output.add_argument(
        "--font",
        type=options.path,
        metavar="FILE",
        help="font file for the captions (default: a font of the system that has the characters)",
    )
    printed = output.add_mutually_exclusive_group()
    options.add_json(printed, "a list with one object per image or frame")
    printed.add_argument(
        "--json-lines",
        action="store_true",
        help="print one JSON object per image or frame to standard output, each on a line as it is ready",
    )
    outputs.add_options(output)
    device = parser.add_argument_group("device")
    options.add_device(device)
    options.add_dtype(device)
    options.add_engine(device)
    options.add_batch_size(device)


def run(args: argparse.Namespace) -> int:
    """Segment images and videos; return 1 if any of them failed."""
    misuse = outputs.find_misuse(args)
    if args.tile_overlap and not args.tile:
        misuse = "--tile-overlap requires --tile"
    shard = shards.select(args)
    prints_file = outputs.are_printed(args) and not args.json_lines
    misuse = misuse or shards.find_misuse(args, shard, prints_file=prints_file)
    if misuse:
        return usage_error(misuse)
    tile = options.tile(args)
    outputs.rename_files(args, shard)
    report = _Report()
    with (
        environment.set_environment({environment.OFFLINE: "1"} if args.offline else {}),
        shards.joined(args, shard),
    ):
        files = expand([_as_entered(source) for source in args.sources], args.output, report)
        done = _segment(files, args, tile, report, shard)
    if report.failed:
        print_error(f"{len(report.failed)} failed, {done} done")
    return 1 if report.failed else 0


class _Report:
    """Prints errors of sources, and collects their names."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def __call__(self, name: str, error: SoloInferError) -> None:
        from tqdm import tqdm

        self.failed.append(name)
        with tqdm.external_write_mode(file=sys.stderr):
            print_error(error)


def _as_entered(source: str) -> str:
    from solo_infer.data.pipes import STDIN

    return STDIN if source == "-" else video.as_entered(source)


def _segment(
    files: Sources, args: argparse.Namespace, tile: Tile | None, report: _Report, shard: Shard
) -> int:
    """Segment files, write the outputs, and return the number of images done.

    Outputs and options are checked before the model is loaded where possible, and before the first image.
    """
    with ExitStack() as stack:
        array: JsonArray | JsonLines | None = JsonArray() if args.json else None
        if args.json_lines:
            array = JsonLines()
        if array is not None:
            stack.enter_context(array)
        if not files.names:
            return 0
        inputs: outputs.Inputs = {"the image": files.names, **_other_inputs(args)}
        outputs.check_files(args, inputs)
        one_video = video.drawn_video(args, files.names, _other_inputs(args))
        folder = None if args.no_save or one_video else _image_folder(args, files, shard)
        destinations = _Outputs(
            drawings=folder,
            videos=stack.enter_context(_video_outputs(args, one_video, folder, report)),
            writers=outputs.open_writers(
                args, files.names, {**inputs, "an image": files.left_out}, stack, shard
            ),
            array=array,
            args=args,
        )
        sources = shard.of(files.names)
        if not sources:  # there are more processes than images
            return 0
        model = options.with_settings(_load_model(args), args)
        if args.classes is not None:
            model = model.only(args.classes)
        results = model.stream(
            sources,
            batch_size=args.batch_size,
            frame_stride=args.frame_stride,
            tile=tile,
            on_error=report,
        )
        done = destinations.record(_with_progress(results, sources, args), report)
    return done + len(set(destinations.videos.sources) - set(report.failed))


def _video_outputs(
    args: argparse.Namespace, path: Path | None, folder: ImageFolder | None, report: _Report
) -> video.VideoOutputs:
    """Return the outputs of videos: one file, files in a folder, or no drawings."""
    path_of = None if folder is None else partial(folder.reserve, suffix=video.DRAWN_SUFFIX)
    return video.VideoOutputs(path or path_of, args, options.draw_threshold(args), report)


def _load_model(args: argparse.Namespace) -> Segmenter:
    """Return the selected model. Defaults to the default model, or the embedded one if it is unavailable."""
    from solo_infer.segmenters.auto import load_model

    dtype = options.network_dtype(args.dtype, args.device)
    settings = {"device": args.device, "dtype": dtype, "engine": args.engine}
    if args.model is not None:
        return load_model(args.model, **settings)
    if args.engine is not None:
        raise ConfigError(f"--engine {args.engine} requires --model FILE, an exported model (.onnx, .xml).")
    try:
        return load_model(DEFAULT_MODEL, **settings)
    except (DownloadError, OfflineError, CacheError) as error:
        info(
            f"{error}\nsolo-infer: {DEFAULT_MODEL} is unavailable (see above): using {EMBEDDED_MODEL!r}, the "
            "small model inside the package. It is less accurate. "
            f"Pass --model {EMBEDDED_MODEL} to silence this message."
        )
        return load_model(EMBEDDED_MODEL, **settings)


def _image_folder(args: argparse.Namespace, files: Sources, shard: Shard) -> ImageFolder:
    """Create the folder of the drawings; no drawing overwrites an input or another output."""
    from solo_infer.results.writers import ImageFolder

    others = [path for paths in _other_inputs(args).values() for path in paths]
    saved = outputs.file_paths(args)
    keep: list[str | Path] = [*files.names, *files.left_out, *others, *saved.values()]
    folder = ImageFolder(args.output, min_score=args.min_score, boxes=args.boxes, font=args.font, keep=keep)
    drawings = {file: folder.path_of(file, _drawn_suffix(file)) for file in files.names}
    refuse_overwriting(saved, {"the drawing": drawings.values()})
    shards.require_own_names(drawings.__getitem__, files.names, shard)
    folder.make()
    return folder


def _drawn_suffix(source: str) -> str | None:
    from solo_infer.data.video_sources import is_video

    return video.DRAWN_SUFFIX if is_video(source) else None


def _other_inputs(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Return the files that are read besides the images, by option."""
    from solo_infer.weights.load import local_files

    return {
        "--model": local_files(args.model or DEFAULT_MODEL),
        "--image-ids": [args.image_ids] if args.image_ids else [],
    }


def _with_progress(
    results: Iterator[Result], sources: list[str], args: argparse.Namespace
) -> Iterator[Result]:
    has_videos = any(_drawn_suffix(source) for source in sources)
    total = video.expected_results(sources, args.frame_stride) if has_videos else len(sources)
    is_shown = not args.quiet and (total is None or total >= PROGRESS_FROM)
    unit = "frame" if has_videos else "image"
    return iter(progress_bar(results, total=total, unit=unit, enabled=is_shown))


@dataclass(frozen=True)
class _Outputs:
    """Destinations of the results.

    Attributes:
        drawings: Folder of the drawings, None to save none.
        videos: Drawings and summary lines of videos.
        writers: Writers of all other files.
        array: JSON array or lines on standard output, None for summary lines.
        args: Parsed arguments.
    """

    drawings: ImageFolder | None
    videos: video.VideoOutputs
    writers: Writers
    array: JsonArray | JsonLines | None
    args: argparse.Namespace

    def record(self, results: Iterator[Result], report: _Report) -> int:
        """Write and print results as they come, and return the number of images (not videos) done."""
        from tqdm import tqdm

        done = 0
        for result in results:
            self.writers.add_to_files(result)
            if self.array:
                with tqdm.external_write_mode():
                    self.array.add(result.filter(self.args.min_score or 0.0).to_dict())
            if result.frame_index is not None:
                self.videos.add(result)
                continue
            try:
                self.writers.add_to_folders(result)
                drawing = self.drawings.add(result) if self.drawings else None
            except ResultError as error:
                report(result.source, error)
                continue
            done += 1
            if not self.array and not outputs.are_printed(self.args):
                with tqdm.external_write_mode():
                    print_text(_summary(result.filter(result.display_threshold), drawing))
        return done


def _summary(result: Result, drawing: Path | None) -> str:
    """Return a line such as "street.jpg: 3 person, 1 car -> street_segmented.jpg"."""
    from collections import Counter

    counts = Counter(result.names).most_common()
    instances = ", ".join(f"{count} {escaped(name)}" for name, count in counts) or "nothing"
    return f"{escaped(result.source)}: {instances}" + (f" -> {escaped(str(drawing))}" if drawing else "")
