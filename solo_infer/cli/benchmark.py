"""``solo-infer benchmark``: time models on one image, stage by stage."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_json, print_text
from solo_infer.runtime.output_files import refuse_overwriting
from solo_infer.weights.manifest import EMBEDDED_MODEL

if TYPE_CHECKING:
    from solo_infer.diagnostics.benchmark import Measurement

SUMMARY = "Time models on one image, stage by stage"
EXAMPLES = (
    "solo-infer benchmark street.jpg --model decoupled_light_r50_3x tiny",
    "solo-infer benchmark street.jpg --device cuda --dtype float32 bfloat16 --batch-size 1 8",
)


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "benchmark", SUMMARY, run, EXAMPLES)
    parser.add_argument("image", metavar="IMAGE", help="file or URL")
    parser.add_argument_group("model").add_argument(
        "--model",
        nargs="+",
        default=[EMBEDDED_MODEL],
        metavar="MODEL",
        help=f"{options.MODEL_HELP} (default: {EMBEDDED_MODEL})",
    )
    detections = parser.add_argument_group("detections")
    options.add_nms(detections)
    options.add_min_score(detections, "leave out instances with a lower score (default: the model's setting)")
    options.add_scaling(detections)
    runs = parser.add_argument_group("runs")
    runs.add_argument(
        "--runs", type=options.positive_int, default=10, metavar="N", help="timed runs (default: %(default)s)"
    )
    runs.add_argument(
        "--warmup",
        type=options.non_negative_int,
        default=2,
        metavar="N",
        help="runs before the timed ones (default: %(default)s)",
    )
    output = parser.add_argument_group("output")
    options.add_json(output, "the measurements")
    output.add_argument(
        "--save-chart", type=options.path, metavar="FILE", help="draw the stages as a bar chart (matplotlib)"
    )
    device = parser.add_argument_group("device")
    options.add_device(device)
    options.add_engine(device)
    device.add_argument(
        "--dtype",
        nargs="+",
        choices=options.DTYPES,
        default=[options.DTYPES[0]],
        help="dtype of the network; auto: the fastest one on the device (default: float32)",
    )
    device.add_argument(
        "--batch-size",
        nargs="+",
        type=options.positive_int,
        default=[1],
        metavar="N",
        help="images per forward pass (default: 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Time every combination of model, dtype and batch size."""
    from solo_infer.diagnostics import benchmark
    from solo_infer.weights.load import local_files

    if args.save_chart:
        models = [file for name in args.model for file in local_files(name)]
        refuse_overwriting({"--save-chart": args.save_chart}, {"IMAGE": [args.image], "--model": models})
        benchmark.check_chart(args.save_chart)
    measurements = _measure_all(args)
    # The table first: an error of the chart must not lose it.
    if args.json:
        print_json([measurement.to_dict() for measurement in measurements])
    else:
        print_text(benchmark.format_table(measurements))
    if args.save_chart:
        benchmark.plot(measurements, args.save_chart)
    return 0


def _measure_all(args: argparse.Namespace) -> list[Measurement]:
    from solo_infer.diagnostics import benchmark
    from solo_infer.segmenters.auto import load_model

    measurements = []
    # Each dtype once, although auto stands for one of the others.
    dtypes = dict.fromkeys(options.network_dtype(dtype, args.device) for dtype in args.dtype)
    for name in args.model:
        for dtype in dtypes:
            model = load_model(name, device=args.device, dtype=dtype, engine=args.engine)
            model = options.with_settings(model, args)
            measurements += [
                benchmark.measure(
                    model, args.image, name=name, batch_size=batch_size, runs=args.runs, warmup=args.warmup
                )
                for batch_size in args.batch_size
            ]
    return measurements
