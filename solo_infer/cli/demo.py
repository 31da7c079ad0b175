"""``solo-infer demo``: a web page that segments the photos dropped on it."""

from __future__ import annotations

import argparse
from typing import Any

from solo_infer.cli import options
from solo_infer.cli.terminal import info, print_text

SUMMARY = "Show a web page that segments photos"
EXAMPLES = ("solo-infer demo", "solo-infer demo --model decoupled_light_r50_3x mine.pth --port 8080")


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "demo", SUMMARY, run, EXAMPLES)
    parser.add_argument_group("model").add_argument(
        "--model",
        nargs="+",
        metavar="MODEL",
        default=[],
        help=f"offered besides the published models, the first one selected: {options.MODEL_HELP} "
        "(default: tiny)",
    )
    page = parser.add_argument_group("page")
    page.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; 0.0.0.0 shows the page to other machines (default: %(default)s)",
    )
    page.add_argument(
        "--port",
        type=options.non_negative_int,
        default=7860,
        metavar="N",
        help="port to listen on, 0 for a free one (default: %(default)s)",
    )
    page.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    device = parser.add_argument_group("device")
    options.add_device(device)
    options.add_dtype(device)


def run(args: argparse.Namespace) -> int:
    """Show the page until ctrl-C."""
    from solo_infer.integrations.demo_page import serve

    def announce(address: str) -> None:
        print_text(address)
        info("Open this address in a browser; ctrl-C ends the page.")

    serve(
        args.model,
        host=args.host,
        port=args.port,
        open_browser=not args.no_browser,
        device=args.device,
        dtype=args.dtype,
        announce=announce,
    )
    return 0
