"""Videos in ``solo-infer predict``: drawn videos, a summary of each video, the length of the progress bar."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from solo_infer.cli import options, outputs
from solo_infer.cli.terminal import print_text
from solo_infer.errors import ImageError, ResultError, SoloInferError
from solo_infer.runtime.messages import escaped, quoted
from solo_infer.runtime.output_files import refuse_overwriting, require_writable

if TYPE_CHECKING:
    from solo_infer.results.result import Result
    from solo_infer.results.video_writer import VideoWriter

DRAWN_SUFFIX = ".mp4"
_MAX_OPENED = 100  # videos whose length is read for the progress bar


def add_options(group: options.Group) -> None:
    """Add the options of videos."""
    group.add_argument(
        "--frame-stride",
        type=options.positive_int,
        default=1,
        metavar="N",
        help="segment every N-th frame of a video (default: %(default)s)",
    )


def as_entered(source: str) -> str:
    """Return the source that an argument names: "0" is a camera unless there is a file of that name."""
    is_number = source.isascii() and source.isdigit() and len(source) < 10
    return f"camera://{int(source)}" if is_number and not os.path.exists(source) else source


def drawn_video(
    args: argparse.Namespace, sources: Sequence[str], inputs: Mapping[str, Iterable[Path]]
) -> Path | None:
    """Return the path of the drawn video that --output names, None if it names a folder.

    Args:
        args: Parsed arguments.
        sources: Files and URLs to segment.
        inputs: Other files that are read, by option.

    Raises:
        ResultError: There are other sources than one video, or the file cannot be written or is an input.
    """
    from solo_infer.data.video_sources import is_video
    from solo_infer.results.video_writer import VIDEO_FORMATS

    output: Path = args.output
    if args.no_save or output.suffix.lower() not in VIDEO_FORMATS or output.is_dir():
        return None
    if len(sources) != 1 or not is_video(sources[0]):
        raise ResultError(
            f"--output {quoted(output, 200)} is the name of a video: expected one video as the source, or a "
            "folder as --output."
        )
    refuse_overwriting({"--output": output, **outputs.file_paths(args)}, {"the video": sources, **inputs})
    require_writable("--output", output, create_folder=True)
    return output


def expected_results(sources: Sequence[str], frame_stride: int) -> int | None:
    """Return about how many results the sources have, None if that is unknown, as of cameras."""
    from solo_infer.data.video import count_frames
    from solo_infer.data.video_sources import as_video

    videos = [video for source in sources if (video := as_video(source)) is not None]
    if len(videos) > _MAX_OPENED:
        return None
    total = len(sources) - len(videos)
    for video in videos:
        try:
            count = count_frames(video, frame_stride)
        except ImageError:
            count = 0  # reported when it is due
        if count is None:
            return None
        total += count
    return total


class VideoOutputs:
    """Context manager that draws the videos of a run and prints a summary of each.

    Attributes:
        sources: Names of the videos that have ended.

    Args:
        path: Path of the drawn video, or a function that returns it for a source. None to draw none.
        args: Parsed arguments.
        min_score: Lowest score to draw and to count.
        report: Called with the name and the error of a video that cannot be drawn.
    """

    def __init__(
        self,
        path: Path | Callable[[str], Path] | None,
        args: argparse.Namespace,
        min_score: float,
        report: Callable[[str, SoloInferError], None],
    ) -> None:
        self._path, self._args, self._min_score, self._report = path, args, min_score, report
        self.sources: list[str] = []
        self._source: str | None = None
        self._writer: VideoWriter | None = None
        self._last_index = -1
        self._frames = 0
        self._counts: Counter[str] = Counter()
        self._start = 0.0

    def __enter__(self) -> VideoOutputs:
        return self

    def add(self, result: Result) -> None:
        """Draw and count a frame."""
        index = result.frame_index or 0
        if result.source != self._source or index <= self._last_index:
            self._end(None, None, None)
            self._begin(result.source)
        self._last_index, self._frames = index, self._frames + 1
        self._counts.update(result.filter(self._min_score).names)
        if self._writer is not None:
            try:
                self._writer.add(result)
            except ResultError as error:
                self._give_up(error)

    def _begin(self, source: str) -> None:
        from solo_infer.results.video_writer import VideoWriter

        self._source, self._frames, self._start = source, 0, time.perf_counter()
        self._counts.clear()
        if self._path is not None:
            path = self._path if isinstance(self._path, Path) else self._path(source)
            try:
                self._writer = VideoWriter(
                    path, min_score=self._min_score, boxes=self._args.boxes, font=self._args.font
                ).__enter__()
            except ResultError as error:
                self._give_up(error)

    def _give_up(self, error: ResultError) -> None:
        """Report that the current video cannot be drawn; its frames are still counted and recorded."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(type(error), error, error.__traceback__)
        self._report(self._source or "", error)

    def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the current video."""
        from tqdm import tqdm

        if self._source is None:
            return
        source, self._source = self._source, None
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.__exit__(kind, error, trace)
            except ResultError as failure:
                writer = None
                self._report(source, failure)
        self.sources.append(source)
        if not outputs.are_printed(self._args):
            with tqdm.external_write_mode():
                print_text(self._summary(source, writer.path if writer is not None else None))

    def _summary(self, source: str, drawing: Path | None) -> str:
        """Return a line such as "clip.mp4: 250 frames with 300 person, 20 car, 12.5 frames/s -> out.mp4"."""
        frames = f"{self._frames} frame{'' if self._frames == 1 else 's'}"
        counts = ", ".join(f"{count} {escaped(name)}" for name, count in self._counts.most_common())
        rate = self._frames / max(time.perf_counter() - self._start, 1e-9)
        arrow = f" -> {escaped(str(drawing))}" if drawing is not None else ""
        return f"{escaped(source)}: {frames} with {counts or 'nothing'}, {rate:.1f} frames/s{arrow}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(kind, error, trace)
