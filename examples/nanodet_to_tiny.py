"""Make the start of the training of "tiny" from the published weights of NanoDet-Plus.

    python examples/nanodet_to_tiny.py nanodet_plus_1.5x.npz start

The first argument holds the weights of NanoDet-Plus-m-1.5x (RangiLyu/nanodet, Apache-2.0) as arrays, with
BatchNorm folded into the convolutions, under the names of ``RULES``. Backbone, pyramid and class branch take
them over. The mask branch starts from random numbers, and the kernel branch as a copy of the class branch.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from solo_infer.config import find_preset
from solo_infer.training import init_model

RULES = (
    (r"^body\.stem\.", "backbone.stem."),
    (r"^body\.stage(\d)\.", lambda match: f"backbone.stages.{int(match[1]) - 2}."),
    (r"\.right_(expand|depthwise|pointwise)\.", r".\1."),
    (r"^(class_tower|class_out|kernel_tower|kernel_out)\.", r"head.\1."),
    (r"^extent_out\.", "head.distance_out."),
    (r"^mask\.from_p\.", "mask_branch.from_pyramid."),
    (r"^mask\.(coarse|fine)\.", r"mask_branch.\g<1>1."),
    (r"^mask\.", "mask_branch."),
)


def renamed(arrays):
    """Return the arrays of NanoDet-Plus as tensors under the names of a Tiny network."""
    tensors = {}
    for name, array in arrays.items():
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        tensors[name] = torch.from_numpy(np.asarray(array, dtype=np.float32))
    # NanoDet-Plus reads BGR.
    tensors["backbone.stem.weight"] = tensors["backbone.stem.weight"].flip(1)
    return tensors


def main(weights, output):
    with np.load(weights) as arrays:
        tensors = renamed(dict(arrays))
    config = find_preset("tiny")
    if len(tensors["neck.lateral.0.bias"]) == 96:
        smaller = replace(config.architecture, backbone="shufflenet_1x", pyramid_channels=96)
        config = replace(config, architecture=smaller)
    model = init_model(config, seed=0)
    unknown = sorted(set(tensors) - set(model.network.state_dict()))
    if unknown:
        raise SystemExit(f"{weights} has unknown arrays, first {unknown[:3]}")
    model.network.load_state_dict({**model.network.state_dict(), **tensors})
    head = model.network.head
    if "head.kernel_tower.0.0.depthwise.weight" not in tensors:
        head.kernel_tower.load_state_dict(head.class_tower.state_dict())
    print(model.save_pretrained(Path(output)))


if __name__ == "__main__":
    main(*sys.argv[1:])
