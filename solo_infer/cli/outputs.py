"""Files that ``predict`` writes besides drawings: options, checks before the work, and writers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from solo_infer.cli import options
from solo_infer.cli.shards import WHOLE, Shard, require_own_names
from solo_infer.errors import ResultError
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.output_files import refuse_overwriting

if TYPE_CHECKING:
    from solo_infer.results.formats.folder import LabelFolder, ResultFolder
    from solo_infer.results.formats.image_ids import ImageIds
    from solo_infer.results.formats.streamed import StreamedFile
    from solo_infer.results.result import Result

STDOUT = Path("-")
FILES = {"--save-json": "save_json", "--save-dataset": "save_dataset", "--save-csv": "save_csv"}
FOLDERS = {"--save-yolo": "save_yolo", "--save-crops": "save_crops", "--save-labelme": "save_labelme"}

# Options whose formats refer to images by file.
IMAGE_OPTIONS = {
    "--image-ids": "image_ids",
    "--save-dataset": "save_dataset",
    "--save-csv": "save_csv",
    "--save-yolo": "save_yolo",
    "--save-crops": "save_crops",
    "--save-labelme": "save_labelme",
}

Inputs = Mapping[str, Sequence[str | os.PathLike[str]]]


def add_options(group: options.Group) -> None:
    """Add the options of all files; "-" writes a file to standard output."""
    group.add_argument(
        "--save-json",
        "--save-coco",
        type=options.path,
        metavar="FILE",
        help="write COCO results, a list of detections, to this file, - for standard output",
    )
    group.add_argument(
        "--save-dataset",
        type=options.path,
        metavar="FILE",
        help="write a COCO data set with images, categories and annotations to this file, or -",
    )
    group.add_argument(
        "--polygons",
        action="store_true",
        help="with --save-dataset: write masks with holes as polygons too, whose holes bridges join to the "
        "outline (default: RLE)",
    )
    group.add_argument(
        "--save-csv", type=options.path, metavar="FILE", help="write a row per instance to this file, or -"
    )
    group.add_argument(
        "--save-yolo",
        type=options.path,
        metavar="DIR",
        help="write YOLO segmentation labels and data.yaml to this folder",
    )
    group.add_argument(
        "--save-crops",
        type=options.path,
        metavar="DIR",
        help="write a PNG with transparent background per instance to this folder",
    )
    group.add_argument(
        "--save-labelme", type=options.path, metavar="DIR", help="write labelme files to this folder"
    )
    group.add_argument(
        "--image-ids",
        type=options.path,
        metavar="FILE",
        help="with --save-json and --save-dataset: use the image ids of this COCO annotation file "
        "(default: the number in the file name, else the position of the image)",
    )


def find_misuse(args: argparse.Namespace) -> str | None:
    """Return a message about options that exclude or require each other, None if there are none."""
    if args.image_ids and not (args.save_json or args.save_dataset):
        return "--image-ids requires --save-json or --save-dataset"
    if args.polygons and not args.save_dataset:
        return "--polygons requires --save-dataset"
    printed = [option for option, name in FILES.items() if getattr(args, name) == STDOUT]
    printed += ["--json"] * args.json + ["--json-lines"] * args.json_lines
    if len(printed) > 1:
        return f"{' and '.join(printed)} would both be written to standard output: write one to a file"
    return None


def rename_files(args: argparse.Namespace, shard: Shard) -> None:
    """Give the files of the parsed arguments the names of one of several processes."""
    for name in FILES.values():
        path = getattr(args, name)
        if path is not None and path != STDOUT and shard.count > 1:
            setattr(args, name, shard.path(path))


def has_outputs(args: argparse.Namespace) -> bool:
    """Return whether any file or folder is written."""
    return any(getattr(args, name) is not None for name in (*FILES.values(), *FOLDERS.values()))


def are_printed(args: argparse.Namespace) -> bool:
    """Return whether results are written to standard output, which then holds nothing else."""
    return args.json or args.json_lines or any(getattr(args, name) == STDOUT for name in FILES.values())


def file_paths(args: argparse.Namespace) -> dict[str, Path]:
    """Return the paths of the files by option, without standard output."""
    paths = {option: getattr(args, name) for option, name in FILES.items()}
    return {option: path for option, path in paths.items() if path is not None and path != STDOUT}


def open_writers(
    args: argparse.Namespace,
    sources: Sequence[str],
    inputs: Inputs,
    stack: ExitStack,
    shard: Shard = WHOLE,
) -> Writers:
    """Check the outputs, open the files, make the folders, and return the writers.

    Args:
        args: Parsed arguments.
        sources: Files and URLs of the images.
        inputs: Files that must not be overwritten, by a name for messages.
        stack: Stack that closes the files.
        shard: Share of the sources that this process segments. Defaults to all.

    Raises:
        ResultError: An output would overwrite an input or another output, or an existing label file, or
            cannot be written; or an image has no id.
        DataError: The file of the image ids cannot be read.
    """
    _refuse_videos(args, sources)
    files, folders = _make_files(args, sources), _make_folders(args, sources, inputs, shard)
    for folder in folders:
        folder.make()
    return Writers([stack.enter_context(file) for file in files], folders)


def _refuse_videos(args: argparse.Namespace, sources: Sequence[str]) -> None:
    """Raise ResultError if frames of a video are to be written to a format of images that are files."""
    from solo_infer.data.video_sources import is_video

    named = [option for option, name in IMAGE_OPTIONS.items() if getattr(args, name)]
    videos = [source for source in sources if is_video(source)] if named else []
    if videos:
        raise ResultError(
            f"{quoted(videos[0])} is a video, but {named[0]} is for image files: expected no video among the "
            "sources. --save-json and --json-lines have the frames of videos."
        )


def check_files(args: argparse.Namespace, inputs: Inputs) -> None:
    """Check that no file is one of the inputs or another file.

    Raises:
        ResultError: Two of them are the same file.
    """
    refuse_overwriting(file_paths(args), inputs)


def _make_files(args: argparse.Namespace, sources: Sequence[str]) -> list[StreamedFile]:
    from solo_infer.results.writers import CocoDataset, CocoFile, CsvFile

    files: list[StreamedFile] = []
    score = options.draw_threshold(args)
    ids = _image_ids(args, sources) if args.save_json or args.save_dataset else None
    if args.save_json:
        files.append(CocoFile(_target(args.save_json), ids, min_score=args.min_score or 0.0))
    if args.save_dataset:
        target, root = _target(args.save_dataset), _common_folder(sources)
        files.append(CocoDataset(target, ids, min_score=score, root=root, polygons_only=args.polygons))
    if args.save_csv:
        files.append(CsvFile(_target(args.save_csv), min_score=score))
    return files


def _make_folders(
    args: argparse.Namespace, sources: Sequence[str], inputs: Inputs, shard: Shard
) -> list[ResultFolder]:
    from solo_infer.results.writers import CropFolder, LabelmeFolder, YoloFolder

    keep = [*(path for paths in inputs.values() for path in paths), *file_paths(args).values()]
    common: dict[str, Any] = {"min_score": options.draw_threshold(args), "keep": keep}
    labels: list[LabelFolder] = []
    if args.save_yolo:
        yolo = YoloFolder(args.save_yolo, **common)
        refuse_overwriting({"--save-yolo": yolo.data_file}, {**inputs, **_as_inputs(file_paths(args))})
        labels.append(yolo)
    if args.save_labelme:
        labels.append(LabelmeFolder(args.save_labelme, **common))
    for folder in labels:
        paths = [folder.path_of(source) for source in sources]
        refuse_overwriting(file_paths(args), {"the label file": paths})
        folder.require_new(shard.of(sources))
    folders = [*labels, *([CropFolder(args.save_crops, **common)] if args.save_crops else [])]
    for each in folders:
        require_own_names(each.path_of, sources, shard)
    return folders


def _as_inputs(paths: Mapping[str, Path]) -> dict[str, list[Path]]:
    return {option: [path] for option, path in paths.items()}


def _target(path: Path) -> Path | BinaryIO:
    if path != STDOUT:
        return path
    stream = getattr(sys.stdout, "buffer", None)  # text streams in memory have none
    return cast(BinaryIO, _Encoded(sys.stdout) if stream is None else stream)


class _Encoded:
    """Binary stream that writes UTF-8 to a text stream.

    Args:
        stream: Text stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.flush = stream.flush

    def write(self, data: bytes) -> int:
        self._stream.write(data.decode("utf-8"))
        return len(data)


def _image_ids(args: argparse.Namespace, sources: Sequence[str]) -> ImageIds:
    """Return the ids of the images, and check that every image has one."""
    from solo_infer.data.coco import read_image_ids
    from solo_infer.data.video_sources import is_video
    from solo_infer.results.writers import ImageIds

    ids = ImageIds(read_image_ids(args.image_ids) if args.image_ids else None)
    for source in sources:
        if not is_video(source):
            ids.of(source)
    return ids


def _common_folder(sources: Sequence[str]) -> str | None:
    """Return the deepest folder of all image files, None if there is no such folder."""
    paths = [os.path.abspath(os.path.expanduser(source)) for source in sources if "://" not in source]
    folders = {os.path.dirname(path) for path in paths if os.path.isfile(path)}  # no pipes
    try:
        return os.path.commonpath(folders) if folders else None
    except ValueError:  # on several drives
        return None


class Writers:
    """Writers of the files and the folders of a run.

    Args:
        files: Open files.
        folders: Folders that exist.
    """

    def __init__(self, files: Sequence[StreamedFile], folders: Sequence[ResultFolder]) -> None:
        self._files, self._folders = files, folders

    def add_to_files(self, result: Result) -> None:
        """Append a result to all files. An error makes them incomplete.

        Raises:
            ResultError: A file cannot be written.
        """
        for file in self._files:
            file.add(result)

    def add_to_folders(self, result: Result) -> None:
        """Write the files of a result in all folders.

        Raises:
            ResultError: A file cannot be written.
        """
        for folder in self._folders:
            folder.add(result)
