"""The command line: each verb is a short function over public functions.

Heavy modules are imported in the verbs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer import _environment
from solo_infer._version import __version__
from solo_infer.errors import ImageError, SoloInferError

if TYPE_CHECKING:
    from solo_infer.result import Result

MODEL_HELP = "a published model ('solo-infer models'), a checkpoint file, a directory or a Hub repo id"
INTERRUPTED = 130  # the exit code of programs that ctrl-C stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for errors, 2 for wrong usage, 130 for ctrl-C."""
    options = build_parser().parse_args(arguments)
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="solo-infer: %(message)s", stream=sys.stderr)
    try:
        return options.run(options)
    except SoloInferError as error:
        return _fail(error)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, e.g. "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _say(message: str) -> None:
    print(f"solo-infer: {message}", file=sys.stderr)


def _fail(error: SoloInferError) -> int:
    _say(f"{type(error).__name__}: {error}")
    return 1


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="solo-infer", description="Instance segmentation with the SOLO family of models."
    )
    parser.add_argument("--version", action="version", version=f"solo-infer {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_predict(verbs)
    verb = _add_verb(verbs, "models", models, "list the published models")
    _add_json(verb)
    verb = _add_verb(verbs, "info", info, "describe a model: origin, licence, architecture, parameters")
    verb.add_argument("model", help=MODEL_HELP)
    _add_json(verb)
    verb = _add_verb(verbs, "download", download, "fetch published models into the cache, or a bundle")
    verb.add_argument("models", nargs="+", metavar="MODEL", help="a published model ('solo-infer models')")
    verb.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"collect a bundle here; on the offline machine set {_environment.HOME} to a copy of it",
    )
    verb = _add_verb(verbs, "convert", convert, "write a model as config.json + model.safetensors")
    verb.add_argument("model", help=MODEL_HELP)
    verb.add_argument("output", type=Path, metavar="DIR", help="where to write")
    verb.add_argument(
        "--dtype", default="float32", help="float32, float16 or bfloat16 (default: %(default)s)"
    )
    verb = _add_verb(
        verbs, "doctor", doctor, "examine this machine: versions, devices, cache, sources, problems"
    )
    _add_json(verb)
    verb = _add_verb(verbs, "verify", verify, "compare this device with mmdet's own results")
    _add_device(verb)
    verb.add_argument("--models", nargs="+", metavar="PRESET", help="only these, e.g. solo_r50")
    _add_json(verb)
    return parser


def _add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    verb.set_defaults(run=run)
    verb.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    return verb


def _add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON, for machines")


def _add_device(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    verb.add_argument(
        "--dtype", default="float32", help="float32, float16 or bfloat16 (default: %(default)s)"
    )


def _add_predict(verbs: Any) -> None:
    verb = _add_verb(verbs, "predict", predict, "segment images, into pictures and a COCO results file")
    verb.add_argument("sources", nargs="+", metavar="IMAGE", help="files, folders, glob patterns or URLs")
    verb.add_argument("--model", help=f"{MODEL_HELP} (default: decoupled_r50_3x)")
    verb.add_argument(
        "--output", type=Path, default=Path("."), metavar="DIR", help="where pictures go (default: here)"
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write COCO results to this file")
    verb.add_argument(
        "--image-ids", type=Path, metavar="FILE", help="take image ids from this COCO annotation file"
    )
    verb.add_argument("--no-pictures", action="store_true", help="write no pictures")
    verb.add_argument("--boxes", action="store_true", help="draw boxes too")
    verb.add_argument(
        "--min-score",
        type=float,
        metavar="S",
        help="leave out instances below this score (default: 0.3 in pictures, none in --json)",
    )
    verb.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes")
    verb.add_argument("--batch-size", type=int, default=1, metavar="N", help="(default: %(default)s)")
    verb.add_argument("--offline", action="store_true", help="never touch the network")
    _add_device(verb)


def predict(options: argparse.Namespace) -> int:
    """Segment images; return 1 if any of them failed."""
    from solo_infer.recording import read_image_ids
    from solo_infer.segmenter import SOLO
    from solo_infer.weights.manifest import DEFAULT_MODEL

    if options.offline:
        os.environ[_environment.OFFLINE] = "1"
    failures: list[str] = []

    def report(name: str, error: SoloInferError) -> None:
        failures.append(name)
        _say(f"{type(error).__name__}: {error}")

    image_ids = read_image_ids(options.image_ids) if options.image_ids else {}
    files = _expand(options.sources, report)
    done = 0
    if files:
        model = SOLO.from_pretrained(
            options.model or DEFAULT_MODEL, device=options.device, dtype=options.dtype
        )
        results = model.stream(files, batch_size=options.batch_size, on_error=report)
        done = _record(_with_progress(results, len(files)), options, image_ids)
    if failures:
        _say(f"{len(failures)} failed, {done} done")
    return 1 if failures else 0


def _record(results: Iterator[Result], options: argparse.Namespace, image_ids: dict[str, int]) -> int:
    """Write results as pictures, as COCO results, or both, and return how many there were."""
    from contextlib import ExitStack

    from solo_infer.recording import CocoFile, PictureFolder

    drawn_from = 0.3 if options.min_score is None else options.min_score
    pictures = PictureFolder(options.output, min_score=drawn_from, boxes=options.boxes)
    done = 0
    with ExitStack() as stack:
        coco = None
        if options.json:
            coco = stack.enter_context(CocoFile(options.json, image_ids, min_score=options.min_score or 0.0))
        for result in results:
            result = result.filter(classes=options.classes)
            if coco:
                coco.add(result)
            path = None if options.no_pictures else pictures.add(result)
            print(_summary(result.filter(drawn_from), path), flush=True)
            done += 1
    return done


def _expand(sources: Sequence[str], report: Callable[[str, SoloInferError], None]) -> list[Any]:
    """Return the files of all sources; a folder or pattern without any is reported."""
    from solo_infer.images import iterate_sources

    files: list[Any] = []
    for source in sources:
        try:
            files.extend(iterate_sources(source))
        except ImageError as error:
            report(source, error)
    return files


def _with_progress(results: Iterator[Result], total: int) -> Iterator[Result]:
    from tqdm import tqdm

    # On a terminal only, and not for a handful of images.
    return iter(tqdm(results, total=total, unit="image", disable=None if total > 5 else True))


def _summary(result: Result, path: Path | None) -> str:
    """Return "street.jpg: 3 person, 1 car -> street_segmented.jpg"."""
    from collections import Counter

    counts = Counter(result.names)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    return f"{result.source}: {found}" + (f" -> {path}" if path else "")


def models(options: argparse.Namespace) -> int:
    """List the published models."""
    from solo_infer.weights.manifest import load_manifest
    from solo_infer.weights.sources import is_cached

    entries = list(load_manifest().values())
    if options.json:
        from solo_infer.describe import describe_entry

        _print_json([describe_entry(entry) for entry in entries])
        return 0
    print(f"{'name':<34}{'mask AP':>8}  {'cached':<8}{'origin':<14}licence")
    for entry in entries:
        cached = "yes" if is_cached(entry) else "no"
        print(f"{entry.name:<34}{entry.mask_ap:>8.1f}  {cached:<8}{entry.origin:<14}{entry.licence}")
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
    print(f"categories ({len(categories['names'])})\n  {', '.join(categories['names'])}")
    return 0


def download(options: argparse.Namespace) -> int:
    """Fetch published models."""
    from solo_infer.weights import sources
    from solo_infer.weights.manifest import find_entry

    entries = [find_entry(name) for name in options.models]
    for entry in entries:
        if not entry.commercial_use:
            _say(f"note: {entry.name} is licensed: {entry.licence}")
    if options.output is None:
        paths = [sources.fetch(entry) for entry in entries]
    else:
        paths = sources.bundle(entries, options.output)
    for path in paths:
        print(path)
    if options.output is not None:
        _say(f"on the offline machine: {_environment.HOME}={options.output} {_environment.OFFLINE}=1")
    return 0


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
    print(save_checkpoint(checkpoint.config, tensors, options.output))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Examine this machine; problems are no failure of the examination."""
    from solo_infer.doctor import examine, format_report

    report = examine()
    if options.json:
        _print_json(report)
    else:
        print(format_report(report))
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compare this device with mmdet; return 1 if any difference is beyond its tolerance."""
    from solo_infer import verify as verification

    checks = []
    wanted = options.models or verification.MODELS
    if not options.json:
        print(f"{'model':<22}{'quantity':<16}{'difference':>12}{'tolerance':>12}")
    for check in verification.verify(options.device, options.dtype, wanted):
        checks.append(check)
        if not options.json:
            state = "ok" if check.passed else "FAILED"
            print(
                f"{check.model:<22}{check.quantity:<16}{check.found:>12.2e}{check.limit:>12.0e}  {state}",
                flush=True,
            )
    if options.json:
        _print_json([{**vars(check), "passed": check.passed} for check in checks])
    return 0 if all(check.passed for check in checks) else 1
