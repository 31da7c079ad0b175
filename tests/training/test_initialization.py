"""Initial weights: replaced classifiers, selected classes, and ImageNet backbones."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.models import YOLACT_VARIANTS, small_config, small_yolact_config, small_yolact_network

from solo_infer import YOLACT
from solo_infer.config import Categories
from solo_infer.errors import CheckpointError, ResultError
from solo_infer.models.backbones.efficientnet_lite import EfficientNetLite0
from solo_infer.training import init_model, load_backbone_weights, replace_classifier
from solo_infer.training.initialization import keep_classes

# Names of our layers in the published EfficientNet-Lite0.
LITE0_LAYERS = {
    "expand.conv": "_expand_conv",
    "expand.bn": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.bn": "_bn1",
    "project.conv": "_project_conv",
    "project.bn": "_bn2",
}
both_variants = pytest.mark.parametrize("variant", YOLACT_VARIANTS)


def small_yolact(variant):
    config = small_yolact_config(variant)
    return YOLACT(config, small_yolact_network(config))


def lite0_model():
    config = small_config("decoupled_light")
    return init_model(
        replace(config, architecture=replace(config.architecture, backbone="efficientnet_lite0"))
    )


def test_initial_weights_depend_only_on_the_seed():
    config = small_config("decoupled_light")
    before = torch.random.get_rng_state()
    first, second, other = (init_model(config, seed).network.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["mask_head.conv_cls.weight"], other["mask_head.conv_cls.weight"])


def test_only_the_classifier_is_initialized_for_other_classes(small_model):
    changed = replace_classifier(small_model, Categories(("nut", "bolt")))
    assert changed.config.architecture.num_classes == 2
    assert changed.config.preprocessing == small_model.config.preprocessing
    state, original = changed.network.state_dict(), small_model.network.state_dict()
    classifier = {"mask_head.conv_cls.weight", "mask_head.conv_cls.bias"}
    for name, tensor in state.items():
        assert (name in classifier) == (tensor.shape != original[name].shape), name
        assert name in classifier or torch.equal(tensor, original[name]), name
    assert torch.sigmoid(changed.network.mask_head.conv_cls.bias).tolist() == pytest.approx([0.01, 0.01])
    assert state["mask_head.conv_cls.weight"].std() == pytest.approx(0.01, rel=0.2)


def test_classifier_is_initialized_for_as_many_other_classes(small_model):
    changed = replace_classifier(small_model, Categories(("nut", "bolt", "gear")), seed=3)
    state, original = changed.network.state_dict(), small_model.network.state_dict()
    different = {name for name, tensor in state.items() if not torch.equal(tensor, original[name])}
    assert different == {"mask_head.conv_cls.weight", "mask_head.conv_cls.bias"}
    again = replace_classifier(small_model, Categories(("nut", "bolt", "gear")), seed=3)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())


def test_model_with_the_same_classes_is_copied(small_model):
    copy = replace_classifier(small_model, small_model.config.categories)
    original = small_model.network.state_dict()
    for name, tensor in copy.network.state_dict().items():
        assert torch.equal(tensor, original[name]) and tensor.data_ptr() != original[name].data_ptr()


def test_copy_is_float32_and_predicts(small_model, photo):
    half = replace_classifier(small_model, small_model.config.categories)
    half.network.to(torch.bfloat16)
    before = torch.random.get_rng_state()
    changed = replace_classifier(half, Categories(("nut",)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {tensor.dtype for tensor in changed.network.parameters()} == {torch.float32}
    assert {tensor.device.type for tensor in changed.network.state_dict().values()} == {"cpu"}
    assert {tensor.device.type for tensor in changed.network.buffers()} == {"cpu"}
    assert changed(photo).categories.names == ("nut",)


@both_variants
def test_classifiers_of_yolact_are_initialized_for_other_classes(variant):
    model = small_yolact(variant)
    other = replace_classifier(model, Categories(("nut", "bolt")))
    before, after = model.network.state_dict(), other.network.state_dict()
    classifiers = {"bbox_head.conv_cls", "mask_head.segm_branch.segm_conv"}
    for name, tensor in after.items():
        if name.rsplit(".", 1)[0] in classifiers:
            assert tensor.shape != before[name].shape
            assert name.endswith("weight") == bool(tensor.any())  # Xavier, and zeros
        else:
            assert torch.equal(tensor, before[name]), name


def test_kept_classes_have_the_same_scores(small_model):
    smaller = keep_classes(small_model, ["bird", "cat"])
    assert smaller.config.categories.names == ("bird", "cat")
    assert smaller.config.categories.ids == (3, 1)
    images = torch.zeros(1, 3, 96, 160)
    with torch.no_grad():
        levels = small_model.network.features(images)
        for logits, expected in zip(
            smaller.network.mask_head.class_logits(levels),
            small_model.network.mask_head.class_logits(levels),
            strict=True,
        ):
            torch.testing.assert_close(logits, expected[:, [2, 0]])
    with pytest.raises(ResultError, match="No class 'birds'.*'bird'"):
        keep_classes(small_model, ["birds"])


@both_variants
@torch.no_grad()
def test_kept_classes_of_yolact_have_the_same_scores(variant):
    model = small_yolact(variant)
    smaller = keep_classes(model, ["bird", "cat"])
    assert (smaller.config.categories.names, smaller.config.categories.ids) == (("bird", "cat"), (3, 1))
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    output, expected = smaller.network(images), model.network(images)
    torch.testing.assert_close(output.predictions.logits, expected.predictions.logits[..., [2, 0, 3]])
    torch.testing.assert_close(output.prototypes, expected.prototypes)
    level = model.network.features(images)[0]
    maps, expected_maps = (
        network.mask_head.segm_branch(level) for network in (smaller.network, model.network)
    )
    for label, old_label in enumerate((2, 0)):
        channel, old_channel = (
            smaller.network.semantic_channel(label),
            model.network.semantic_channel(old_label),
        )
        torch.testing.assert_close(maps[:, channel], expected_maps[:, old_channel])


@pytest.fixture(scope="module")
def published_lite0(tmp_path_factory):
    """Return a backbone with random weights, and a checkpoint of it with the published names."""
    torch.manual_seed(5)
    backbone = EfficientNetLite0()
    block_numbers = {}
    for name in backbone.state_dict():
        if block := re.match(r"stages\.\d+\.\d+", name):
            block_numbers.setdefault(block[0], len(block_numbers))

    def published_name(name):
        if name.startswith("stem."):
            return name.replace("stem.conv.", "_conv_stem.").replace("stem.bn.", "_bn0.")
        block, layer, parameter = re.fullmatch(r"(stages\.\d+\.\d+)\.(\w+\.\w+)\.(\w+)", name).groups()
        return f"_blocks.{block_numbers[block]}.{LITE0_LAYERS[layer]}.{parameter}"

    tensors = {published_name(name): tensor for name, tensor in backbone.state_dict().items()}
    assert {"_conv_stem.weight", "_bn0.bias", "_blocks.0._depthwise_conv.weight"} <= tensors.keys()
    assert "_blocks.0._expand_conv.weight" not in tensors and "_blocks.15._project_conv.weight" in tensors
    path = tmp_path_factory.mktemp("backbone") / "lite0.pth"
    torch.save({**tensors, "_conv_head.weight": torch.zeros(2), "_fc.bias": torch.zeros(3)}, path)
    return backbone, path


@pytest.mark.parametrize("convert", [str, Path])
def test_efficientnet_lite0_is_loaded(published_lite0, convert):
    backbone, path = published_lite0
    network = lite0_model().network
    load_backbone_weights(network, convert(path))
    loaded = network.backbone.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in backbone.state_dict().items())


def test_resnet_is_loaded(small_model, tmp_path):
    tensors = small_model.network.backbone.state_dict()
    torch.save({**tensors, "fc.weight": torch.zeros(3, 3)}, tmp_path / "resnet.pth")
    network = init_model(small_model.config, seed=9).network
    load_backbone_weights(network, tmp_path / "resnet.pth")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.backbone.state_dict().items())


def test_other_checkpoints_are_rejected(small_model, published_lite0, tmp_path):
    with pytest.raises(CheckpointError, match="does not fit the backbone resnet18: .* tensors are missing"):
        load_backbone_weights(small_model.network, published_lite0[1])
    torch.save(small_model.network.backbone.state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(
        CheckpointError, match="does not fit the backbone efficientnet_lite0: .* tensors are missing"
    ):
        load_backbone_weights(lite0_model().network, tmp_path / "resnet.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="list.pth holds list: expected a state dict"):
        load_backbone_weights(small_model.network, tmp_path / "list.pth")
