"""``solo-infer info``: what a model is, and the table of its layers."""

from __future__ import annotations

import argparse

from solo_infer.cli.terminal import print_json, print_text


def info(options: argparse.Namespace) -> int:
    """Describe one model."""
    from solo_infer.diagnostics.model_info import describe_model

    size = None if options.input_size is None else (options.input_size[0], options.input_size[1])
    found = describe_model(options.model, size)
    if options.json:
        print_json({**found.facts, "totals": found.layers.totals(), "layers": found.layers.rows()})
        return 0
    categories = found.facts.pop("categories")
    for section, values in found.facts.items():
        if not isinstance(values, dict):
            continue
        print_text(section)
        for name, value in values.items():
            shown = (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else value
            print_text(f"  {name}: {shown:,}" if section == "parameters" else f"  {name}: {shown}")
    print_text(f"categories ({len(categories['names'])})\n  {', '.join(categories['names'])}")
    print_text(f"layers\n{found.layers.format(options.depth)}")
    return 0
