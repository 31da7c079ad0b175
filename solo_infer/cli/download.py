"""``solo-infer download``: fetch published models into the cache or an offline bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options
from solo_infer.cli.terminal import info, print_error, print_text
from solo_infer.errors import SoloInferError
from solo_infer.runtime import environment

if TYPE_CHECKING:
    from solo_infer.weights.manifest import ManifestEntry

SUMMARY = "Download published models into the cache or an offline bundle"
EXAMPLES = (
    "solo-infer download decoupled_r50_3x",
    "solo-infer download decoupled_r50_3x decoupled_light_r50_3x --output bundle",
)


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "download", SUMMARY, run, EXAMPLES)
    parser.add_argument(
        "model", nargs="+", metavar="MODEL", help="published model ('solo-infer models' lists them)"
    )
    parser.add_argument_group("output").add_argument(
        "--output",
        type=options.path,
        metavar="DIR",
        help="copy the models into this bundle; on the offline machine set "
        f"{environment.HOME} to its path (default: the cache)",
    )


def run(args: argparse.Namespace) -> int:
    """Download models; continue with the rest if one fails, and return 1 in that case."""
    from solo_infer.weights.manifest import find_entry

    entries = [find_entry(name) for name in dict.fromkeys(args.model)]
    failed = 0
    for entry in entries:
        if not entry.commercial_use:
            info(f"license of {entry.name}: {entry.license}")
        try:
            print_text(str(_download(entry, args.output, progress=not args.quiet)))
        except SoloInferError as error:
            print_error(error)
            failed += 1
    if failed:
        print_error(f"{failed} failed, {len(entries) - failed} done")
    elif args.output is not None:
        info(f"on the offline machine set {environment.HOME}={args.output} {environment.OFFLINE}=1")
    return 1 if failed else 0


def _download(entry: ManifestEntry, bundle: Path | None, *, progress: bool) -> Path:
    """Return the path of the file in the cache or the bundle."""
    from solo_infer.weights import fetch

    if bundle is None:
        return fetch.fetch(entry, progress=progress)
    return fetch.bundle([entry], bundle, progress=progress)[0]
