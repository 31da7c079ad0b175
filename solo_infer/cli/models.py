"""``solo-infer models``: list the published models."""

from __future__ import annotations

import argparse
from typing import Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_json, print_text

SUMMARY = "List the published models"
EXAMPLES = ("solo-infer models", "solo-infer models --json")


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "models", SUMMARY, run, EXAMPLES)
    options.add_json(parser.add_argument_group("output"), "the list")


def run(args: argparse.Namespace) -> int:
    """Print name, mask AP, classes, size, cache state, origin and license of each model."""
    from solo_infer.weights.fetch import is_cached
    from solo_infer.weights.manifest import load_manifest, size_in_bytes

    entries = list(load_manifest().values())
    if args.json:
        from solo_infer.diagnostics.model_info import describe_entry

        print_json([describe_entry(entry) for entry in entries])
        return 0
    print_text(f"{'name':<36}{'mask AP':>9}{'classes':>9}{'MB':>7}  {'cached':<8}{'origin':<14}license")
    for entry in entries:
        cached = "yes" if is_cached(entry) else "no"
        mask_ap = "-" if entry.mask_ap is None else f"{entry.mask_ap:.1f}"
        size = size_in_bytes(entry)
        megabytes = "-" if size is None else f"{size / 1e6:.1f}"
        numbers = f"{mask_ap:>9}{entry.classes:>9}{megabytes:>7}"
        print_text(f"{entry.name:<36}{numbers}  {cached:<8}{entry.origin:<14}{entry.license}")
    return 0
