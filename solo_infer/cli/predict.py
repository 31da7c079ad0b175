"""``solo-infer predict``: segment images into drawings, COCO results or JSON."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options
from solo_infer.cli.terminal import JsonArray, info, print_error, print_text, set_environment, usage_error
from solo_infer.errors import CacheError, DownloadError, ImageError, OfflineError, ResultError, SoloInferError
from solo_infer.runtime import environment
from solo_infer.runtime.messages import escaped, quoted
from solo_infer.runtime.output_files import refuse_overwriting
from solo_infer.runtime.progress import progress_bar
from solo_infer.weights.manifest import DEFAULT_MODEL, EMBEDDED_MODEL

if TYPE_CHECKING:
    from solo_infer.config.tiling import Tile
    from solo_infer.results.result import Result
    from solo_infer.results.writers import CocoFile, ImageFolder
    from solo_infer.segmenters.base import Segmenter

SUMMARY = "Segment images: draw instances, save COCO results, print JSON"
EXAMPLES = (
    "solo-infer predict street.jpg",
    'solo-infer predict "photos/**/*.jpg" --classes person car --min-score 0.5 --output segmented',
    "solo-infer predict photos --no-save --save-json results.json",
)
PROGRESS_FROM = 6  # number of images from which a progress bar is shown

Report = Callable[[str, SoloInferError], None]


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "predict", SUMMARY, run, EXAMPLES)
    parser.add_argument(
        "sources", nargs="+", metavar="IMAGE", help="file, folder, glob pattern, URL, or - for standard input"
    )
    model = parser.add_argument_group("model")
    options.add_model(model, f"{DEFAULT_MODEL}, or {EMBEDDED_MODEL} if that is unavailable")
    model.add_argument("--offline", action="store_true", help="do not access the network")
    detections = parser.add_argument_group("detections")
    options.add_classes(detections, "detect only these classes")
    detections.add_argument(
        "--min-score",
        type=options.unit_interval,
        metavar="S",
        help="leave out instances with a lower score "
        f"(default: {options.DRAW_THRESHOLD} in drawings and summary lines, 0 in JSON)",
    )
    options.add_nms(detections)
    options.add_tile(detections)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=options.path,
        default=Path("."),
        metavar="DIR",
        help="folder for the drawings (default: current folder)",
    )
    output.add_argument("--no-save", action="store_true", help="save no drawings")
    output.add_argument("--boxes", action="store_true", help="draw boxes in addition to masks")
    output.add_argument(
        "--font",
        type=options.path,
        metavar="FILE",
        help="font file for the captions (default: a font of the system that has the characters)",
    )
    options.add_json(output, "a list with one object per image")
    options.add_save_json(output)
    output.add_argument(
        "--image-ids",
        type=options.path,
        metavar="FILE",
        help="with --save-json: use the image ids of this COCO annotation file "
        "(default: the number in the file name, else the position of the image)",
    )
    device = parser.add_argument_group("device")
    options.add_device(device)
    options.add_dtype(device)
    options.add_batch_size(device)


def run(args: argparse.Namespace) -> int:
    """Segment images; return 1 if any of them failed."""
    from tqdm import tqdm

    if args.image_ids and not args.save_json:
        return usage_error("--image-ids requires --save-json")
    if args.tile_overlap and not args.tile:
        return usage_error("--tile-overlap requires --tile")
    tile = options.tile(args)
    failed: list[str] = []

    def report(name: str, error: SoloInferError) -> None:
        failed.append(name)
        with tqdm.external_write_mode(file=sys.stderr):
            print_error(error)

    with set_environment({environment.OFFLINE: "1"} if args.offline else {}):
        files = _expand(args, report)
        done = _segment(files, args, tile, report)
    if failed:
        print_error(f"{len(failed)} failed, {done} done")
    return 1 if failed else 0


@dataclass(frozen=True)
class _Files:
    """Files to segment, and others in their folders that must not be overwritten.

    Attributes:
        sources: Files and URLs as entered.
        left_out: Files that have the names of drawings, but were not written by this library.
    """

    sources: list[str]
    left_out: list[str]


def _expand(args: argparse.Namespace, report: Report) -> _Files:
    """Return the files and URLs of all sources, each once; report sources that do not exist.

    Drawings of earlier runs in folders and among the matches of patterns are left out.
    """
    from solo_infer.data.patterns import file_key
    from solo_infer.data.pipes import STDIN
    from solo_infer.data.sources import check_source, is_url, iterate_sources
    from solo_infer.results.drawing import is_own_drawing
    from solo_infer.results.writers import drawings_among

    names: dict[Hashable, str] = {}  # as entered, by file or URL
    drawings: list[str] = []
    for source in args.sources:
        entered = STDIN if source == "-" else source
        try:
            found = list(map(str, iterate_sources(entered)))
            if found != [entered]:
                drawings += drawings_among(found, args.output)
            for name in found:
                check_source(name)
                key = name if is_url(name) else file_key(os.path.expanduser(name))
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
    return _Files(sources, [drawing for drawing in drawings if not is_own_drawing(drawing)])


def _segment(files: _Files, args: argparse.Namespace, tile: Tile | None, report: Report) -> int:
    """Segment files, write the outputs, and return the number of images done.

    Outputs and options are checked before the model is loaded where possible, and before the first image.
    """
    with ExitStack() as stack:
        array = stack.enter_context(JsonArray()) if args.json else None
        if not files.sources:
            return 0
        outputs = _Outputs(
            drawings=None if args.no_save else _image_folder(args, files),
            coco=stack.enter_context(_coco_file(args, files.sources)) if args.save_json else None,
            array=array,
            args=args,
        )
        model = options.with_nms(_load_model(args), args)
        if args.classes is not None:
            model = model.only(args.classes)
        results = model.stream(files.sources, batch_size=args.batch_size, tile=tile, on_error=report)
        return outputs.record(_with_progress(results, len(files.sources), args.quiet), report)


def _load_model(args: argparse.Namespace) -> Segmenter:
    """Return the selected model. Defaults to the default model, or the embedded one if it is unavailable."""
    from solo_infer.segmenters.auto import load_model

    settings = {"device": args.device, "dtype": args.dtype}
    if args.model is not None:
        return load_model(args.model, **settings)
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
    keep = [*files.sources, *files.left_out, *others, *([args.save_json] if args.save_json else [])]
    folder = ImageFolder(
        args.output, min_score=_draw_threshold(args), boxes=args.boxes, font=args.font, keep=keep
    )
    if args.save_json:
        drawings = [folder.path_of(file) for file in files.sources]
        refuse_overwriting({"--save-json": args.save_json}, {"the drawing": drawings})
    folder.make()
    return folder


def _other_inputs(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Return the files that are read besides the images, by option."""
    from solo_infer.weights.load import local_files

    return {
        "--model": local_files(args.model or DEFAULT_MODEL),
        "--image-ids": [args.image_ids] if args.image_ids else [],
    }


def _coco_file(args: argparse.Namespace, files: list[str]) -> CocoFile:
    """Return the COCO results file, and check that it is not an input and that every image has an id."""
    from solo_infer.data.coco import read_image_ids
    from solo_infer.results.writers import CocoFile, ImageIds

    refuse_overwriting({"--save-json": args.save_json}, {"the image": files, **_other_inputs(args)})
    ids = ImageIds(read_image_ids(args.image_ids) if args.image_ids else None)
    for file in files:
        ids.of(file)
    return CocoFile(args.save_json, ids, min_score=args.min_score or 0.0)


def _draw_threshold(args: argparse.Namespace) -> float:
    return options.DRAW_THRESHOLD if args.min_score is None else float(args.min_score)


def _with_progress(results: Iterator[Result], total: int, quiet: bool) -> Iterator[Result]:
    is_shown = not quiet and total >= PROGRESS_FROM
    return iter(progress_bar(results, total=total, unit="image", enabled=is_shown))


@dataclass(frozen=True)
class _Outputs:
    """Destinations of the results.

    Attributes:
        drawings: Folder of the drawings, None to save none.
        coco: COCO results file, None to write none.
        array: JSON on standard output, None for summary lines.
        args: Parsed arguments.
    """

    drawings: ImageFolder | None
    coco: CocoFile | None
    array: JsonArray | None
    args: argparse.Namespace

    def record(self, results: Iterator[Result], report: Report) -> int:
        """Write and print results as they come, and return the number of images done."""
        from tqdm import tqdm

        done = 0
        for result in results:
            if self.coco:
                self.coco.add(result)
            if self.array:
                with tqdm.external_write_mode():
                    self.array.add(result.filter(self.args.min_score or 0.0).to_dict())
            try:
                drawing = self.drawings.add(result) if self.drawings else None
            except ResultError as error:
                report(result.source, error)
                continue
            done += 1
            if not self.array:
                with tqdm.external_write_mode():
                    print_text(_summary(result.filter(_draw_threshold(self.args)), drawing))
        return done


def _summary(result: Result, drawing: Path | None) -> str:
    """Return a line such as "street.jpg: 3 person, 1 car -> street_segmented.jpg"."""
    from collections import Counter

    counts = Counter(result.names).most_common()
    instances = ", ".join(f"{count} {escaped(name)}" for name, count in counts) or "nothing"
    return f"{escaped(result.source)}: {instances}" + (f" -> {escaped(str(drawing))}" if drawing else "")
