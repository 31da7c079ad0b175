"""The command line: each verb is a short function over public functions.

Heavy modules are imported in the verbs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from solo_infer.cli.eval import evaluate
from solo_infer.cli.export import export
from solo_infer.cli.info import info
from solo_infer.cli.options import make_parser
from solo_infer.cli.predict import predict
from solo_infer.cli.terminal import fail, print_json, print_text, say
from solo_infer.cli.train import train
from solo_infer.errors import ConfigError, DeviceError, SoloInferError
from solo_infer.runtime import environment
from solo_infer.weights.manifest import EMBEDDED_MODEL

if TYPE_CHECKING:
    from solo_infer.diagnostics.verify import Check

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
            return fail(error)
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except BrokenPipeError:  # the reader of our output has gone, e.g. "| head"
            _let_go_of_output()
            return 1
        except (ImportError, OSError) as error:  # a package or a library of it is missing, a disk is full
            _let_go_of_output()
            logging.getLogger(__name__).info("what led to it:", exc_info=True)
            fail(error)
            say("'solo-infer doctor' may tell what is wrong with this machine")
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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs; ``run`` of what it parses is the verb's function."""
    return make_parser(
        [predict, train, evaluate, benchmark, models, info, download, convert, export, doctor, verify]
    )


def benchmark(options: argparse.Namespace) -> int:
    """Time models on one image."""
    from solo_infer.diagnostics import benchmark as benchmarking
    from solo_infer.segmenters.auto import load_model

    measured = []
    for name in options.models or [EMBEDDED_MODEL]:
        for dtype in options.dtypes:
            model = load_model(name, device=options.device, dtype=dtype)
            for batch_size in options.batch_sizes:
                measured.append(
                    benchmarking.measure(
                        model,
                        options.image,
                        name=name,
                        batch_size=batch_size,
                        runs=options.runs,
                        warmup=options.warmup,
                    )
                )
    if options.chart:
        benchmarking.plot(measured, options.chart)
    if options.json:
        print_json([found.to_dict() for found in measured])
    else:
        print_text(benchmarking.format_table(measured))
    return 0


def models(options: argparse.Namespace) -> int:
    """List the published models."""
    from solo_infer.weights.fetch import is_cached
    from solo_infer.weights.manifest import load_manifest

    entries = list(load_manifest().values())
    if options.json:
        from solo_infer.diagnostics.model_info import describe_entry

        print_json([describe_entry(entry) for entry in entries])
        return 0
    print(f"{'name':<36}{'mask AP':>9}  {'cached':<8}{'origin':<14}license")
    for entry in entries:
        cached = "yes" if is_cached(entry) else "no"
        ap = "-" if entry.mask_ap is None else f"{entry.mask_ap:.1f}"
        print(f"{entry.name:<36}{ap:>9}  {cached:<8}{entry.origin:<14}{entry.license}")
    return 0


def download(options: argparse.Namespace) -> int:
    """Fetch published models; one that cannot be had does not keep the others from being fetched."""
    from solo_infer.weights import fetch
    from solo_infer.weights.manifest import find_entry

    entries = [find_entry(name) for name in dict.fromkeys(options.models)]
    failed = 0
    for entry in entries:
        if not entry.commercial_use:
            say(f"note: {entry.name} is licensed: {entry.license}")
        try:
            if options.output is None:
                print_text(str(fetch.fetch(entry)))
            else:
                (path,) = fetch.bundle([entry], options.output)
                print_text(str(path))
        except SoloInferError as error:
            failed += fail(error)
    if failed:
        say(f"{failed} failed, {len(entries) - failed} done")
    elif options.output is not None:
        say(f"on the offline machine: {environment.HOME}={options.output} {environment.OFFLINE}=1")
    return 1 if failed else 0


def convert(options: argparse.Namespace) -> int:
    """Write any model that can be read in our own layout."""
    from solo_infer.runtime.device import resolve_dtype
    from solo_infer.segmenters.auto import load_model
    from solo_infer.training.initialization import keep_classes
    from solo_infer.weights.load import load_checkpoint, save_checkpoint

    dtype = resolve_dtype(options.dtype)
    if options.classes:
        model = keep_classes(load_model(options.model, device="cpu"), options.classes)
        config, state_dict = model.config, model.network.state_dict()
    else:
        checkpoint = load_checkpoint(options.model)
        config, state_dict = checkpoint.config, checkpoint.state_dict
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state_dict.items()
    }
    print_text(str(save_checkpoint(config, tensors, options.output)))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Examine this machine; problems are no failure of the examination."""
    from solo_infer.diagnostics.doctor import collect_report, format_report

    report = collect_report()
    if options.json:
        print_json(report)
    else:
        print_text(format_report(report))
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compare this device with mmdet; return 1 if any difference is beyond its tolerance."""
    from solo_infer.diagnostics import verify as verification
    from solo_infer.runtime.device import resolve_device

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
                numbers = f"{check.difference:>12.2e}{check.limit:>12.0e}"
                print(f"{check.model:<22}{check.quantity:<16}{numbers}  {state}", flush=True)
    except RuntimeError as error:
        if isinstance(error, SoloInferError):
            raise
        raise DeviceError(f"{device} cannot compute this in {options.dtype}: {error}") from error
    failed = sum(not check.passed for check in checks)
    if options.json:
        print_json([_check_facts(check) for check in checks])
    else:
        print(f"{failed or 'none'} of {len(checks)} checks failed ({device}, {options.dtype})")
    return 1 if failed else 0


def _check_facts(check: Check) -> dict[str, Any]:
    """Return a check as JSON-ready values; JSON knows no NaN and no infinity, which become null."""
    difference = check.difference if math.isfinite(check.difference) else None
    return {**vars(check), "difference": difference, "passed": check.passed}
