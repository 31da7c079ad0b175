"""``solo-infer predict``: segment images into drawings, JSON and the formats of ``cli/outputs.py``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Hashable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options, outputs, video
from solo_infer.cli.terminal import (
    JsonArray,
    JsonLines,
    info,
    print_error,
    print_text,
    set_environment,
    usage_error,
)
from solo_infer.config.display import DISPLAY_THRESHOLD
from solo_infer.errors import (
    CacheError,
    ConfigError,
    DownloadError,
    ImageError,
    OfflineError,
    ResultError,
    SoloInferError,
)
from solo_infer.runtime import environment
from solo_infer.runtime.messages import escaped, quoted
from solo_infer.runtime.output_files import refuse_overwriting
from solo_infer.runtime.progress import progress_bar
from solo_infer.weights.manifest import DEFAULT_MODEL, EMBEDDED_MODEL

if TYPE_CHECKING:
    from solo_infer.cli.outputs import Writers
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
    if misuse:
        return usage_error(misuse)
    tile = options.tile(args)
    report = _Report()
    with set_environment({environment.OFFLINE: "1"} if args.offline else {}):
        files = _expand(args, report)
        done = _segment(files, args, tile, report)
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


@dataclass(frozen=True)
class _Files:
    """Files to segment, and others in their folders that must not be overwritten.

    Attributes:
        sources: Files and URLs as entered.
        left_out: Files that have the names of drawings, but were not written by this library.
    """

    sources: list[str]
    left_out: list[str]


def _expand(args: argparse.Namespace, report: _Report) -> _Files:
    """Return the files and URLs of all sources, each once; report sources that do not exist.

    Drawings of earlier runs in folders and among the matches of patterns are left out.
    """
    from solo_infer.data.patterns import file_key
    from solo_infer.data.pipes import STDIN
    from solo_infer.data.sources import check_source, is_url, iterate_sources
    from solo_infer.data.video_sources import is_stream_name
    from solo_infer.results.drawing import is_own_drawing
    from solo_infer.results.video_writer import is_own_video
    from solo_infer.results.writers import drawings_among

    names: dict[Hashable, str] = {}  # as entered, by file or URL
    drawings: list[str] = []
    for source in args.sources:
        entered = STDIN if source == "-" else video.as_entered(source)
        try:
            found = list(map(str, iterate_sources(entered)))
            if found != [entered]:
                drawings += drawings_among(found, args.output)
            for name in found:
                check_source(name)
                is_address = is_url(name) or is_stream_name(name)
                key = name if is_address else file_key(os.path.expanduser(name))
                names.setdefault(key, name)
        except ImageError as error:
            report(source, error)
    named = {os.path.abspath(source) for source in args.sources}
    drawings = [drawing for drawing in dict.fromkeys(drawings) if os.path.abspath(drawing) not in named]
    if drawings:
        info(
            f"{len(drawings)} file{'' if len(drawings) == 1 else 's'} left out as drawings of other images: "
            f"{quoted(drawings[0])}{', ...' if len(drawings) > 1 else ''}"
        )
    sources = [name for name in names.values() if name not in set(drawings)]
    others = [drawing for drawing in drawings if not (is_own_drawing(drawing) or is_own_video(drawing))]
    return _Files(sources, others)


def _segment(files: _Files, args: argparse.Namespace, tile: Tile | None, report: _Report) -> int:
    """Segment files, write the outputs, and return the number of images done.

    Outputs and options are checked before the model is loaded where possible, and before the first image.
    """
    with ExitStack() as stack:
        array: JsonArray | JsonLines | None = JsonArray() if args.json else None
        if args.json_lines:
            array = JsonLines()
        if array is not None:
            stack.enter_context(array)
        if not files.sources:
            return 0
        inputs: outputs.Inputs = {"the image": files.sources, **_other_inputs(args)}
        outputs.check_files(args, inputs)
        one_video = video.drawn_video(args, files.sources, _other_inputs(args))
        folder = None if args.no_save or one_video else _image_folder(args, files)
        destinations = _Outputs(
            drawings=folder,
            videos=stack.enter_context(_video_outputs(args, one_video, folder, report)),
            writers=outputs.open_writers(args, files.sources, {**inputs, "an image": files.left_out}, stack),
            array=array,
            args=args,
        )
        model = options.with_settings(_load_model(args), args)
        if args.classes is not None:
            model = model.only(args.classes)
        results = model.stream(
            files.sources,
            batch_size=args.batch_size,
            frame_stride=args.frame_stride,
            tile=tile,
            on_error=report,
        )
        done = destinations.record(_with_progress(results, files.sources, args), report)
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

    settings = {"device": args.device, "dtype": args.dtype, "engine": args.engine}
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


def _image_folder(args: argparse.Namespace, files: _Files) -> ImageFolder:
    """Create the folder of the drawings; no drawing overwrites an input or another output."""
    from solo_infer.results.writers import ImageFolder

    others = [path for paths in _other_inputs(args).values() for path in paths]
    saved = outputs.file_paths(args)
    keep: list[str | Path] = [*files.sources, *files.left_out, *others, *saved.values()]
    folder = ImageFolder(args.output, min_score=args.min_score, boxes=args.boxes, font=args.font, keep=keep)
    drawings = [folder.path_of(file, _drawn_suffix(file)) for file in files.sources]
    refuse_overwriting(saved, {"the drawing": drawings})
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
