"""``solo-infer info``: describe a model and its layers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_json, print_text
from solo_infer.runtime.messages import escaped

if TYPE_CHECKING:
    from solo_infer.diagnostics.model_info import Description

SUMMARY = "Describe a model: origin, license, architecture, layers"
EXAMPLES = (
    "solo-infer info decoupled_r50_3x",
    "solo-infer info solo_r101 --input-size 800 1344 --depth 1",
)


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "info", SUMMARY, run, EXAMPLES)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"{options.MODEL_HELP}; also a preset (e.g. solo_r101) or a config.json",
    )
    layers = parser.add_argument_group("layers")
    options.add_input_size(
        layers, "height and width of the network input in pixels (default: the largest that the model uses)"
    )
    layers.add_argument(
        "--depth",
        type=options.non_negative_int,
        default=2,
        metavar="N",
        help="levels of nested layers to list; 0 for totals only (default: %(default)s)",
    )
    options.add_json(parser.add_argument_group("output"), "the description")


def run(args: argparse.Namespace) -> int:
    """Describe one model."""
    from solo_infer.diagnostics.model_info import describe_model

    input_size = None if args.input_size is None else (args.input_size[0], args.input_size[1])
    description = describe_model(args.model, input_size)
    if args.json:
        layers = description.layers
        print_json({**description.facts, "totals": layers.totals(), "layers": layers.rows()})
    else:
        print_text(_format(description, args.depth))
    return 0


def _format(description: Description, depth: int) -> str:
    """Return a description as text: sections of "name: value" lines, then the layer table."""
    lines: list[str] = []
    for section, values in description.facts.items():
        if section in ("format", "categories"):
            continue
        if not isinstance(values, dict):
            lines.append(f"{section}: {values}")
            continue
        lines.append(section)
        lines += [f"  {name}: {_format_value(value, section)}" for name, value in values.items()]
    names = description.facts["categories"]["names"]
    lines += [f"categories ({len(names)})", f"  {', '.join(map(escaped, names))}"]
    lines += ["layers", description.layers.format(depth)]
    return "\n".join(lines)


def _format_value(value: Any, section: str) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(escaped(str(item)) for item in value) or "none"
    return f"{value:,}" if section == "parameters" else escaped(str(value))
