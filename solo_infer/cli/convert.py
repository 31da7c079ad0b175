"""``solo-infer convert``: write a checkpoint as config.json and model.safetensors."""

from __future__ import annotations

import argparse
from typing import Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_text
from solo_infer.errors import CacheError
from solo_infer.runtime.output_files import refuse_overwriting, require_writable

SUMMARY = "Convert a checkpoint to config.json + model.safetensors"
EXAMPLES = (
    "solo-infer convert decoupled_light_r50_3x --output light",
    "solo-infer convert epoch_12.pth --output people --classes person --dtype float16",
)


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "convert", SUMMARY, run, EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help=options.MODEL_HELP)
    options.add_classes(
        parser.add_argument_group("model"), "keep only these classes (default: all classes of the model)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=options.path, required=True, metavar="DIR", help="folder to write the model to"
    )
    options.add_dtype(output, "dtype of the stored weights")


def run(args: argparse.Namespace) -> int:
    """Convert one checkpoint."""
    from solo_infer.runtime.device import resolve_dtype
    from solo_infer.segmenters.auto import load_model
    from solo_infer.training.initialization import keep_classes
    from solo_infer.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME
    from solo_infer.weights.load import load_checkpoint, local_files
    from solo_infer.weights.save import save_checkpoint

    dtype = resolve_dtype(options.network_dtype(args.dtype, "auto"))
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        target = args.output / name
        refuse_overwriting({"--output": target}, {"MODEL": local_files(args.model)})
        require_writable("--output", target, create_folder=True, error_type=CacheError)
    if args.classes:
        model = keep_classes(load_model(args.model, device="cpu"), args.classes)
        config, state_dict = model.config, model.network.state_dict()
    else:
        checkpoint = load_checkpoint(args.model)
        config, state_dict = checkpoint.config, checkpoint.state_dict
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state_dict.items()
    }
    print_text(str(save_checkpoint(config, tensors, args.output)))
    return 0
