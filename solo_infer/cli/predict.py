"""``solo-infer predict``: images in, pictures and a COCO results file out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from solo_infer.cli.nms_options import with_chosen_nms
from solo_infer.cli.options import DRAWN_FROM
from solo_infer.cli.terminal import WRONG_USAGE, print_text, say
from solo_infer.errors import CacheError, DownloadError, ImageError, OfflineError, ResultError, SoloInferError
from solo_infer.runtime import environment
from solo_infer.weights.manifest import DEFAULT_MODEL, EMBEDDED_MODEL

if TYPE_CHECKING:
    from solo_infer.results.result import Result
    from solo_infer.results.writers import CocoFile, ImageFolder
    from solo_infer.segmenters.base import Segmenter

Report = Callable[[str, SoloInferError], None]


def predict(options: argparse.Namespace) -> int:
    """Segment images; return 1 if any of them failed."""
    from tqdm import tqdm

    if options.image_ids and not options.json:
        say("--image-ids is for --json: give both")
        return WRONG_USAGE
    failures: list[str] = []

    def report(name: str, error: SoloInferError) -> None:
        failures.append(name)
        with tqdm.external_write_mode(file=sys.stderr):
            say(f"{type(error).__name__}: {error}")

    with ExitStack() as stack:
        if options.offline:
            stack.enter_context(_offline())
        files = _expand(options.sources, report)
        done = _segment(files, options, report) if files else 0
    if failures:
        say(f"{len(failures)} failed, {done} done")
    return 1 if failures else 0


@contextmanager
def _offline() -> Iterator[None]:
    before = os.environ.get(environment.OFFLINE)
    os.environ[environment.OFFLINE] = "1"
    try:
        yield
    finally:
        del os.environ[environment.OFFLINE]
        if before is not None:
            os.environ[environment.OFFLINE] = before


def _expand(sources: Sequence[str], report: Report) -> list[str]:
    """Return the files and URLs of all sources, each once; what is not there is reported."""
    from solo_infer.data.sources import check_source, iterate_sources

    found: dict[str, str] = {}
    for source in sources:
        try:
            for item in map(str, iterate_sources(source)):
                path = os.path.abspath(os.path.expanduser(item))
                check_source(item)
                found.setdefault(item if "://" in item else path, item)
        except ImageError as error:
            report(source, error)
    return list(found.values())


def _segment(files: list[str], options: argparse.Namespace, report: Report) -> int:
    """Segment files into pictures, COCO results, or both, and return how many were done.

    What is wrong with outputs and options is found before the first image, and as far as it can be
    before the model is loaded.
    """
    from solo_infer.results.writers import ImageFolder

    drawn_from = DRAWN_FROM if options.min_score is None else options.min_score
    pictures = None
    if not options.no_pictures:
        pictures = ImageFolder(options.output, min_score=drawn_from, boxes=options.boxes, keep=files)
        pictures.make()
    with _coco_file(options, files) as coco:
        model = with_chosen_nms(_load(options), options)
        classes = None if options.classes is None else model.config.categories.labels(options.classes)
        results = model.stream(files, batch_size=options.batch_size, on_error=report)
        chosen = (result.filter(classes=classes) for result in _with_progress(results, len(files)))
        return _record(chosen, pictures, coco, drawn_from, report)


def _load(options: argparse.Namespace) -> Segmenter:
    """Return the model that was asked for; if none was, the default, or else the one in the package."""
    from solo_infer.segmenters.auto import load_model

    where = {"device": options.device, "dtype": options.dtype}
    if options.model is not None:
        return load_model(options.model, **where)
    try:
        return load_model(DEFAULT_MODEL, **where)
    except (DownloadError, OfflineError, CacheError) as error:
        say(
            f"{error}\nsolo-infer: {DEFAULT_MODEL} cannot be had (see above): using the small model "
            f"{EMBEDDED_MODEL!r} that comes with the package. It knows fewer classes and finds less; "
            f"--model {EMBEDDED_MODEL} asks for it without this message."
        )
        return load_model(EMBEDDED_MODEL, **where)


def _coco_file(options: argparse.Namespace, files: list[str]) -> CocoFile | nullcontext[None]:
    """Return the COCO results file, if there shall be one, and see to it that each image has an id."""
    from solo_infer.data.coco import read_image_ids
    from solo_infer.results.writers import CocoFile, ImageIds

    if not options.json:
        return nullcontext()
    ids = ImageIds(read_image_ids(options.image_ids) if options.image_ids else None)
    for file in files:
        ids.of(file)
    return CocoFile(options.json, ids, min_score=options.min_score or 0.0)


def _with_progress(results: Iterator[Result], total: int) -> Iterator[Result]:
    from tqdm import tqdm

    # On a terminal only, and not for a handful of images.
    return iter(tqdm(results, total=total, unit="image", disable=None if total > 5 else True))


def _record(
    results: Iterator[Result],
    pictures: ImageFolder | None,
    coco: CocoFile | None,
    told_from: float,
    report: Report,
) -> int:
    """Write and tell results, and return how many could be."""
    from tqdm import tqdm

    done = 0
    for result in results:
        if coco:
            coco.add(result)
        try:
            path = pictures.add(result) if pictures else None
        except ResultError as error:
            report(result.source, error)
            continue
        with tqdm.external_write_mode():
            print_text(_summary(result.filter(told_from), path))
        done += 1
    return done


def _summary(result: Result, path: Path | None) -> str:
    """Return "street.jpg: 3 person, 1 car -> street_segmented.jpg"."""
    from collections import Counter

    counts = Counter(result.names)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    return f"{result.source}: {found}" + (f" -> {path}" if path else "")
