"""Images on their way to a model: in order, ahead of their turn where that changes nothing."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from solo_infer.data.images import Color, ImageSource, LoadedImage, iterate_sources, load_image
from solo_infer.errors import ImageError, OfflineError, SoloInferError

AHEAD = 2  # images that are decoded before their turn

# An image, and seconds: "load", that its loading took, and "wait", that the model waited for that.
Loaded = tuple[LoadedImage, dict[str, float]]
OnError = Callable[[str, SoloInferError], None]


def load_all(
    source: ImageSource | Iterable[ImageSource], color: Color, on_error: OnError | None
) -> Iterator[Loaded]:
    """Yield the images of a source, each with the seconds that its loading took.

    Args:
        source: What ``iterate_sources`` takes.
        color: Channel order of arrays and tensors.
        on_error: Called with the name and error of an image that cannot be read, which is then left out;
            if not given, the error is raised, when it is the image's turn.
    """
    in_turn = _load_ahead if _is_known_beforehand(source) else _load_in_turn
    for item, load in in_turn(iterate_sources(source), color):
        start = time.perf_counter()
        try:
            loaded, seconds = load()
        except (ImageError, OfflineError) as error:
            if on_error is None:
                raise
            on_error(str(item) if isinstance(item, str | os.PathLike) else type(item).__name__, error)
            continue
        yield loaded, {"load": seconds, "wait": time.perf_counter() - start}


def _is_known_beforehand(source: object) -> bool:
    """Return whether a source is a folder, a pattern or a list with files (or addresses, or bytes) in it.

    An iterator may be a camera: what it gives ahead of its turn would be old by then.
    """
    if isinstance(source, list | tuple):
        return len(source) > 1 and any(isinstance(item, str | os.PathLike | bytes) for item in source)
    return isinstance(source, str | os.PathLike)


def _load_timed(item: ImageSource, color: Color) -> tuple[LoadedImage, float]:
    start = time.perf_counter()
    loaded = load_image(item, color=color)
    return loaded, time.perf_counter() - start


Load = Callable[[], tuple[LoadedImage, float]]


def _load_in_turn(items: Iterator[ImageSource], color: Color) -> Iterator[tuple[ImageSource, Load]]:
    for item in items:
        yield item, lambda item=item: _load_timed(item, color)  # type: ignore[misc]


def _load_ahead(items: Iterator[ImageSource], color: Color) -> Iterator[tuple[ImageSource, Load]]:
    pending: deque[tuple[ImageSource, Future[tuple[LoadedImage, float]]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="solo_infer-decode") as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(_load_timed, item, color)))
                if len(pending) > AHEAD:
                    first, future = pending.popleft()
                    yield first, future.result
            while pending:
                first, future = pending.popleft()
                yield first, future.result
        finally:
            for _, future in pending:
                future.cancel()
