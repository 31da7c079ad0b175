"""``solo-infer doctor``: a diagnostic report of this machine."""

from __future__ import annotations

import argparse
from typing import Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_json, print_text

SUMMARY = "Report versions, devices, cache, download sources and problems"
EXAMPLES = ("solo-infer doctor", "solo-infer doctor --json")


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "doctor", SUMMARY, run, EXAMPLES)
    options.add_json(parser.add_argument_group("output"), "the report")


def run(args: argparse.Namespace) -> int:
    """Print a diagnostic report; return 0 even if problems are found."""
    from solo_infer.diagnostics.doctor import collect_report, format_report

    report = collect_report()
    if args.json:
        print_json(report)
    else:
        print_text(format_report(report))
    return 0
