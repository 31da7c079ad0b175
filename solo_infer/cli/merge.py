"""``solo-infer merge``: write the results of ``batch`` in the formats of ``cli/outputs.py``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options, outputs
from solo_infer.cli.terminal import info, usage_error
from solo_infer.errors import DataError
from solo_infer.runtime.progress import progress_bar

if TYPE_CHECKING:
    from solo_infer.integrations.batch_output import BatchOutput, Part, RunManifest
    from solo_infer.results.result import Result

SUMMARY = "Write the Parquet files of a batch run as COCO, CSV, YOLO and other formats"
EXAMPLES = (
    "solo-infer merge run --save-coco results.json",
    "solo-infer merge run --save-dataset dataset.json --save-csv table.csv --min-score 0.5",
)


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "merge", SUMMARY, run, EXAMPLES)
    parser.add_argument("run_folder", metavar="DIR", help="folder or URI that 'solo-infer batch' has written")
    options.add_min_score(
        parser, "leave out instances with a lower score (default: as in predict with the options of the run)"
    )
    parser.add_argument(
        "--partial", action="store_true", help="write the images that are done, if the run is not complete"
    )
    outputs.add_options(parser)
    parser.set_defaults(json=False, json_lines=False)


def run(args: argparse.Namespace) -> int:
    """Write the files; they are equal to those of ``predict`` for the same images and options."""
    from solo_infer.integrations.batch_output import BatchOutput

    misuse = outputs.find_misuse(args)
    if not outputs.has_outputs(args):
        misuse = "expected an output, such as --save-json FILE"
    if misuse:
        return usage_error(misuse)
    output = BatchOutput(args.run_folder)
    manifest = output.read_manifest()
    if manifest is None:
        raise DataError(f"{output.location} is not the output of a run: 'solo-infer batch' writes one.")
    parts = output.read_plan()
    done = output.done(parts, manifest)
    if len(done) < len(parts) and not args.partial:
        raise DataError(
            f"{len(parts) - len(done)} of {len(parts)} files of the run in {output.location} are missing: "
            "repeat the batch command to complete it, or pass --partial."
        )
    if args.min_score is None:
        args.min_score = manifest.settings.get("min_score")
    sources = [uri for part in parts for uri in part.uris]
    inputs: outputs.Inputs = {
        "the image": [manifest.source_of(uri) for uri in sources],
        "the file": output.file_paths(parts),
        "--image-ids": [args.image_ids] if args.image_ids else [],
    }
    failed = 0
    with ExitStack() as stack:
        outputs.check_files(args, inputs)
        writers = outputs.open_writers(args, sources, inputs, stack)
        rows = _rows(output, [part for part in parts if part.file in done])
        for uri, row in progress_bar(rows, total=len(sources), unit="image", enabled=not args.quiet):
            if row["error"] is not None:
                failed += 1
                continue
            result = _result(row, manifest, uri, has_image=args.save_crops is not None)
            writers.add_to_files(result)
            writers.add_to_folders(result)
    if failed:
        info(f"{failed} image{'' if failed == 1 else 's'} left out, which could not be read")
    return 0


def _rows(output: BatchOutput, parts: list[Part]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the row of each image, in the order of the plan."""
    for part in parts:
        yield from zip(part.uris, output.read_rows(part), strict=True)


def _result(row: dict[str, Any], manifest: RunManifest, uri: str, *, has_image: bool) -> Result:
    """Return the result of a row, with the image if an output needs it."""
    from solo_infer.data.images import load_image
    from solo_infer.results.formats.parquet import to_result

    result = to_result(row, manifest.categories, uri)
    return replace(result, image=load_image(manifest.source_of(uri)).pixels) if has_image else result
