"""Prefetch images and frames of videos in a background thread, preserving their order."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias, cast

from solo_infer.data.background import iterate_in_background
from solo_infer.data.images import Color, LoadedImage, load_image
from solo_infer.data.sources import ENCODED_TYPES, ImageSource, StreamSource, iterate_sources
from solo_infer.data.video import read_frames, silence_error, silence_limit
from solo_infer.data.video_sources import Video, as_video, is_video
from solo_infer.errors import ImageError, OfflineError, SoloInferError

MAX_PREFETCHED = 2  # images decoded before they are needed

OnError: TypeAlias = Callable[[str, SoloInferError], None]
_Load: TypeAlias = Callable[[], tuple[LoadedImage, float]]


class PrefetchedImage(NamedTuple):
    """A loaded image and the time spent on loading it.

    Attributes:
        image: The decoded image.
        timings: Seconds by stage: "load" for loading, "wait" for the time that the consumer was blocked.
    """

    image: LoadedImage
    timings: dict[str, float]


def prefetch_images(
    source: StreamSource | Iterable[StreamSource],
    color: Color,
    on_error: OnError | None,
    *,
    frame_stride: int = 1,
) -> Iterator[PrefetchedImage]:
    """Iterate over the loaded images and frames of a source, in its order.

    Images of folders, glob patterns and lists of files are decoded in advance by one background thread, and
    so are the frames of videos. Other iterables are consumed one image at a time, because they may be live: a
    camera's frame would be outdated when it is needed.

    Args:
        source: Any source that ``iterate_sources`` accepts.
        color: Channel order of arrays and tensors.
        on_error: Called with the name and the error of each image that cannot be loaded, which is then
            skipped, and of each video that ends with an error, after its frames. With None, the error is
            raised when the image is due.
        frame_stride: Number of frames of a video from one returned frame to the next.
    """
    start_loading = _load_in_background if _is_known_in_advance(source) else _load_on_demand
    for are_videos, items in itertools.groupby(iterate_sources(source), key=is_video):
        if are_videos:
            for video in map(as_video, items):
                yield from _frames(cast(Video, video), frame_stride, on_error)
        else:
            yield from _images(start_loading(cast(Iterator[ImageSource], items), color), on_error)


def _frames(video: Video, frame_stride: int, on_error: OnError | None) -> Iterator[PrefetchedImage]:
    """Yield the frames of a video, which a thread decodes."""
    start = time.perf_counter()
    frames = iterate_in_background(
        lambda: _timed(read_frames(video, frame_stride)),
        capacity=MAX_PREFETCHED,
        keep_latest=video.is_live,
        timeout=silence_limit(video),
    )
    try:
        with contextlib.closing(frames):
            for image, seconds in frames:
                yield PrefetchedImage(image, {"load": seconds, "wait": time.perf_counter() - start})
                start = time.perf_counter()
    except (ImageError, OfflineError, TimeoutError) as error:
        failure = silence_error(video) if isinstance(error, TimeoutError) else error
        if on_error is None:
            raise failure from error.__cause__
        on_error(video.name, failure)


def _timed(
    frames: Generator[LoadedImage | None, None, None],
) -> Generator[tuple[LoadedImage, float] | None, None, None]:
    """Yield frames with the seconds that decoding them and the left-out ones before took."""
    with contextlib.closing(frames):
        start = time.perf_counter()
        for frame in frames:
            yield frame if frame is None else (frame, time.perf_counter() - start)
            if frame is not None:
                start = time.perf_counter()


def _images(
    loading: Iterable[tuple[ImageSource, _Load]], on_error: OnError | None
) -> Iterator[PrefetchedImage]:
    """Yield the images that can be loaded."""
    for item, load in loading:
        start = time.perf_counter()
        try:
            image, seconds = load()
        except (ImageError, OfflineError) as error:
            if on_error is None:
                raise
            on_error(os.fsdecode(item) if isinstance(item, str | os.PathLike) else type(item).__name__, error)
            continue
        yield PrefetchedImage(image, {"load": seconds, "wait": time.perf_counter() - start})


def in_batches(images: Iterator[PrefetchedImage], size: int) -> Iterator[list[PrefetchedImage]]:
    """Yield images in lists of ``size``; the last one is shorter, also before an error of ``images``."""
    batch: list[PrefetchedImage] = []
    try:
        for image in images:
            batch.append(image)
            if len(batch) == size:
                yield batch
                batch = []
    except (ImageError, OfflineError):
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _is_known_in_advance(source: object) -> bool:
    """Return whether a source is a path, URL or glob pattern, or several items with files, URLs or bytes."""
    if isinstance(source, list | tuple):
        types = (str, os.PathLike, *ENCODED_TYPES)
        return len(source) > 1 and any(isinstance(item, types) for item in source)
    return isinstance(source, str | os.PathLike)


def _load_timed(item: ImageSource, color: Color) -> tuple[LoadedImage, float]:
    start = time.perf_counter()
    image = load_image(item, color=color)
    return image, time.perf_counter() - start


def _load_on_demand(items: Iterator[ImageSource], color: Color) -> Iterator[tuple[ImageSource, _Load]]:
    for item in items:
        yield item, lambda item=item: _load_timed(item, color)  # type: ignore[misc]


def _load_in_background(items: Iterator[ImageSource], color: Color) -> Iterator[tuple[ImageSource, _Load]]:
    pending: deque[tuple[ImageSource, Future[tuple[LoadedImage, float]]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="solo_infer-decode") as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(_load_timed, item, color)))
                if len(pending) > MAX_PREFETCHED:
                    next_item, future = pending.popleft()
                    yield next_item, future.result
            while pending:
                next_item, future = pending.popleft()
                yield next_item, future.result
        finally:
            for _, future in pending:
                future.cancel()
