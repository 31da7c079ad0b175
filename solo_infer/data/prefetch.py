"""Prefetch images in a background thread, preserving their order."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from solo_infer.data.images import Color, LoadedImage, load_image
from solo_infer.data.sources import ENCODED_TYPES, ImageSource, iterate_sources
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
    source: ImageSource | Iterable[ImageSource], color: Color, on_error: OnError | None
) -> Iterator[PrefetchedImage]:
    """Iterate over the loaded images of a source, in its order.

    Images of folders, glob patterns and lists of files are decoded in advance by one background thread. Other
    iterables are consumed one image at a time, because they may be live: a camera's frame would be outdated
    when it is needed.

    Args:
        source: Any source that ``iterate_sources`` accepts.
        color: Channel order of arrays and tensors.
        on_error: Called with the name and the error of each image that cannot be loaded, which is then
            skipped. With None, the error is raised when the image is due.
    """
    start_loading = _load_in_background if _is_known_in_advance(source) else _load_on_demand
    for item, load in start_loading(iterate_sources(source), color):
        start = time.perf_counter()
        try:
            image, seconds = load()
        except (ImageError, OfflineError) as error:
            if on_error is None:
                raise
            on_error(os.fsdecode(item) if isinstance(item, str | os.PathLike) else type(item).__name__, error)
            continue
        yield PrefetchedImage(image, {"load": seconds, "wait": time.perf_counter() - start})


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
