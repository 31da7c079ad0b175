"""The command line: each verb is a short function over public functions.

Heavy modules are imported in the verbs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer import _environment
from solo_infer._arguments import DRAWN_FROM, make_parser
from solo_infer.errors import ConfigError, DeviceError, ImageError, ResultError, SoloInferError
from solo_infer.weights.manifest import DEFAULT_MODEL

if TYPE_CHECKING:
    from solo_infer.recording import CocoFile, PictureFolder
    from solo_infer.result import Result
    from solo_infer.verify import Check

Report = Callable[[str, SoloInferError], None]
WRONG_USAGE = 2  # as argparse has it
INTERRUPTED = 130  # the exit code of programs that ctrl-C stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for errors, 2 for wrong usage, 130 for ctrl-C."""
    try:
        options = build_parser().parse_args(arguments)
    except SystemExit as stop:  # after --help, or when argparse has told what is wrong
        return int(stop.code or 0)
    with _log_to_stderr(options.verbose):
        try:
            code = options.run(options)
            sys.stdout.flush()  # here, where a failure can be told
            return code
        except SoloInferError as error:
            return _fail(error)
        except KeyboardInterrupt:
            _say("interrupted")
            return INTERRUPTED
        except BrokenPipeError:  # the reader of our output has gone, e.g. "| head"
            _let_go_of_output()
            return 1
        except (ImportError, OSError) as error:  # a package or a library of it is missing, a disk is full
            _let_go_of_output()
            logging.getLogger(__name__).info("what led to it:", exc_info=True)
            _fail(error)
            _say("'solo-infer doctor' may tell what is wrong with this machine")
            return 1


def _let_go_of_output() -> None:
    """Drop what standard output holds and cannot write, or Python would fail with it at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _log_to_stderr(verbose: bool) -> Iterator[None]:
    """Show the library's log, warnings or all, for as long as a verb runs."""
    logger = logging.getLogger("solo_infer")
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("solo-infer: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _say(message: str) -> None:
    print(f"solo-infer: {message}", file=sys.stderr, flush=True)


def _fail(error: Exception) -> int:
    _say(f"{type(error).__name__}: {error}")
    return 1


def _print(text: str) -> None:
    """Print with escapes for what the output's encoding lacks (in names of files or classes)."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs; ``run`` of what it parses is the verb's function."""
    return make_parser([predict, evaluate, models, info, download, convert, doctor, verify])


def predict(options: argparse.Namespace) -> int:
    """Segment images; return 1 if any of them failed."""
    from tqdm import tqdm

    if options.image_ids and not options.json:
        _say("--image-ids is for --json: give both")
        return WRONG_USAGE
    failures: list[str] = []

    def report(name: str, error: SoloInferError) -> None:
        failures.append(name)
        with tqdm.external_write_mode(file=sys.stderr):
            _say(f"{type(error).__name__}: {error}")

    with ExitStack() as stack:
        if options.offline:
            stack.enter_context(_offline())
        files = _expand(options.sources, report)
        done = _segment(files, options, report) if files else 0
    if failures:
        _say(f"{len(failures)} failed, {done} done")
    return 1 if failures else 0


@contextmanager
def _offline() -> Iterator[None]:
    before = os.environ.get(_environment.OFFLINE)
    os.environ[_environment.OFFLINE] = "1"
    try:
        yield
    finally:
        del os.environ[_environment.OFFLINE]
        if before is not None:
            os.environ[_environment.OFFLINE] = before


def _expand(sources: Sequence[str], report: Report) -> list[str]:
    """Return the files and URLs of all sources, each once; what is not there is reported."""
    from solo_infer.images import iterate_sources, load_image

    found: dict[str, str] = {}
    for source in sources:
        try:
            for item in map(str, iterate_sources(source)):
                path = os.path.abspath(os.path.expanduser(item))
                if "://" not in item and not os.path.exists(path):
                    load_image(item)  # which tells why it cannot be
                found.setdefault(item if "://" in item else path, item)
        except ImageError as error:
            report(source, error)
    return list(found.values())


def _segment(files: list[str], options: argparse.Namespace, report: Report) -> int:
    """Segment files into pictures, COCO results, or both, and return how many were done.

    What is wrong with outputs and options is found before the first image, and as far as it can be
    before the model is loaded.
    """
    from solo_infer.recording import PictureFolder
    from solo_infer.segmenter import SOLO

    drawn_from = DRAWN_FROM if options.min_score is None else options.min_score
    pictures = None
    if not options.no_pictures:
        pictures = PictureFolder(options.output, min_score=drawn_from, boxes=options.boxes, keep=files)
        pictures.make()
    with _coco_file(options, files) as coco:
        model = SOLO.from_pretrained(options.model, device=options.device, dtype=options.dtype)
        classes = None if options.classes is None else model.config.categories.labels(options.classes)
        results = model.stream(files, batch_size=options.batch_size, on_error=report)
        chosen = (result.filter(classes=classes) for result in _with_progress(results, len(files)))
        return _record(chosen, pictures, coco, drawn_from, report)


def _coco_file(options: argparse.Namespace, files: list[str]) -> CocoFile | nullcontext[None]:
    """Return the COCO results file, if there shall be one, and see to it that each image has an id."""
    from solo_infer.recording import CocoFile, ImageIds, read_image_ids

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
    pictures: PictureFolder | None,
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
            _print(_summary(result.filter(told_from), path))
        done += 1
    return done


def _summary(result: Result, path: Path | None) -> str:
    """Return "street.jpg: 3 person, 1 car -> street_segmented.jpg"."""
    from collections import Counter

    counts = Counter(result.names)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    return f"{result.source}: {found}" + (f" -> {path}" if path else "")


def evaluate(options: argparse.Namespace) -> int:
    """Score a model, or a file of detections, on a COCO data set."""
    from solo_infer import evaluation
    from solo_infer.segmenter import SOLO

    chosen = {name: getattr(options, name) for name in ("max_detections", "limit", "classes")}
    if options.detections:
        if options.model or options.output:
            _say("--detections are scored as they are: leave out --model and --output")
            return WRONG_USAGE
        found = evaluation.score(options.annotations, options.detections, **chosen)
    else:
        model = SOLO.from_pretrained(
            options.model or DEFAULT_MODEL, device=options.device, dtype=options.dtype
        )
        found = evaluation.evaluate(
            model,
            options.images,
            options.annotations,
            output=options.output,
            batch_size=options.batch_size,
            **chosen,
        )
    if options.json:
        _print_json(found.to_dict())
    else:
        _print(found.format_table())
    return 0


def models(options: argparse.Namespace) -> int:
    """List the published models."""
    from solo_infer.weights.manifest import load_manifest
    from solo_infer.weights.sources import is_cached

    entries = list(load_manifest().values())
    if options.json:
        from solo_infer.describe import describe_entry

        _print_json([describe_entry(entry) for entry in entries])
        return 0
    print(f"{'name':<32}{'mask AP':>9}  {'cached':<8}{'origin':<14}licence")
    for entry in entries:
        cached = "yes" if is_cached(entry) else "no"
        print(f"{entry.name:<32}{entry.mask_ap:>9.1f}  {cached:<8}{entry.origin:<14}{entry.licence}")
    return 0


def info(options: argparse.Namespace) -> int:
    """Describe one model."""
    from solo_infer.describe import describe_model

    facts = describe_model(options.model)
    if options.json:
        _print_json(facts)
        return 0
    categories = facts.pop("categories")
    for section, values in facts.items():
        if not isinstance(values, dict):
            continue
        print(section)
        for name, value in values.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            print(f"  {name}: {shown:,}" if section == "parameters" else f"  {name}: {shown}")
    _print(f"categories ({len(categories['names'])})\n  {', '.join(categories['names'])}")
    return 0


def download(options: argparse.Namespace) -> int:
    """Fetch published models; one that cannot be had does not keep the others from being fetched."""
    from solo_infer.weights import sources
    from solo_infer.weights.manifest import find_entry

    entries = [find_entry(name) for name in dict.fromkeys(options.models)]
    failed = 0
    for entry in entries:
        if not entry.commercial_use:
            _say(f"note: {entry.name} is licensed: {entry.licence}")
        try:
            if options.output is None:
                _print(str(sources.fetch(entry)))
            else:
                (path,) = sources.bundle([entry], options.output)
                _print(str(path))
        except SoloInferError as error:
            failed += _fail(error)
    if failed:
        _say(f"{failed} failed, {len(entries) - failed} done")
    elif options.output is not None:
        _say(f"on the offline machine: {_environment.HOME}={options.output} {_environment.OFFLINE}=1")
    return 1 if failed else 0


def convert(options: argparse.Namespace) -> int:
    """Write any model that can be read in our own layout."""
    from solo_infer.device import resolve_dtype
    from solo_infer.weights.pretrained import load_checkpoint, save_checkpoint

    dtype = resolve_dtype(options.dtype)
    checkpoint = load_checkpoint(options.model)
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.state_dict.items()
    }
    _print(str(save_checkpoint(checkpoint.config, tensors, options.output)))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Examine this machine; problems are no failure of the examination."""
    from solo_infer.doctor import examine, format_report

    report = examine()
    if options.json:
        _print_json(report)
    else:
        _print(format_report(report))
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compare this device with mmdet; return 1 if any difference is beyond its tolerance."""
    from solo_infer import verify as verification
    from solo_infer.device import resolve_device

    wanted = options.models or verification.MODELS
    unknown = [name for name in wanted if name not in verification.MODELS]
    if unknown:
        known = ", ".join(verification.MODELS)
        raise ConfigError(f"No results of mmdet for {', '.join(unknown)}: expected some of {known}.")
    device = resolve_device(options.device)
    checks: list[Check] = []
    if not options.json:
        print(f"{'model':<22}{'quantity':<16}{'difference':>12}{'tolerance':>12}")
    try:
        for check in verification.verify(device, options.dtype, wanted):
            checks.append(check)
            if not options.json:
                state = "ok" if check.passed else "FAILED"
                numbers = f"{check.found:>12.2e}{check.limit:>12.0e}"
                print(f"{check.model:<22}{check.quantity:<16}{numbers}  {state}", flush=True)
    except RuntimeError as error:
        if isinstance(error, SoloInferError):
            raise
        raise DeviceError(f"{device} cannot compute this in {options.dtype}: {error}") from error
    failed = sum(not check.passed for check in checks)
    if options.json:
        _print_json([_check_facts(check) for check in checks])
    else:
        print(f"{failed or 'none'} of {len(checks)} checks failed ({device}, {options.dtype})")
    return 1 if failed else 0


def _check_facts(check: Check) -> dict[str, Any]:
    """Return a check as JSON-ready values; JSON knows no NaN and no infinity, which become null."""
    found = check.found if math.isfinite(check.found) else None
    return {**vars(check), "found": found, "passed": check.passed}
