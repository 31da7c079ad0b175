"""ImageNet bodies, and the example that trains the embedded model from one."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from helpers.models import small_config
from helpers.paths import EXAMPLES
from helpers.training_sets import instance, rectangle, write_set

from solo_infer import SOLO
from solo_infer.errors import CheckpointError
from solo_infer.models.backbones.efficientnet_lite import EfficientNetLite0
from solo_infer.training import Recipe, init_model, load_backbone_weights
from solo_infer.training.backbone_weights import _PARTS


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A made-up body, and a file of it with the names of the published one."""
    torch.manual_seed(5)
    body = EfficientNetLite0()
    numbers = {}
    for name in body.state_dict():
        if found := re.match(r"stages\.\d+\.\d+", name):
            numbers.setdefault(found[0], len(numbers))
    theirs = {value: key for key, value in _PARTS.items()}

    def named(name):
        if name.startswith("stem."):
            return name.replace("stem.conv.", "_conv_stem.").replace("stem.bn.", "_bn0.")
        block, part, rest = re.fullmatch(r"(stages\.\d+\.\d+)\.(\w+\.\w+)\.(\w+)", name).groups()
        return f"_blocks.{numbers[block]}.{theirs[part]}.{rest}"

    tensors = {named(name): tensor for name, tensor in body.state_dict().items()}
    assert {"_conv_stem.weight", "_bn0.bias", "_blocks.0._depthwise_conv.weight"} <= tensors.keys()
    assert "_blocks.0._expand_conv.weight" not in tensors and "_blocks.15._project_conv.weight" in tensors
    path = tmp_path_factory.mktemp("body") / "lite0.pth"
    torch.save({**tensors, "_conv_head.weight": torch.zeros(2), "_fc.bias": torch.zeros(3)}, path)
    return body, path


def lite0_model():
    config = small_config("decoupled_light").to_dict()
    config["architecture"]["backbone"] = "efficientnet_lite0"
    return init_model(type(small_config("solo")).from_dict(config))


def test_lite0(published):
    body, path = published
    network = lite0_model().network
    load_backbone_weights(network, path)
    loaded = network.backbone.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in body.state_dict().items())


def test_resnet(small_model, tmp_path):
    tensors = small_model.network.backbone.state_dict()
    torch.save({**tensors, "fc.weight": torch.zeros(3, 3)}, tmp_path / "resnet.pth")
    network = init_model(small_model.config, seed=9).network
    load_backbone_weights(network, tmp_path / "resnet.pth")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.backbone.state_dict().items())


def test_another_body_is_refused(small_model, published):
    with pytest.raises(CheckpointError, match="is no resnet50 classifier: .* tensors are missing"):
        load_backbone_weights(small_model.network, published[1])


def test_example_of_the_embedded_model(published, tmp_path, capsys):
    for number, (name, kinds) in enumerate(
        {"all80": {"person": 1, "cat": 17}, "road4": {"person": 1}, "person": {"person": 1}}.items()
    ):
        for part, pictures in (("train", (0, 1)), ("val", (7,))):
            sizes = {f"{number}{part}{picture}.png": (60, 80) for picture in pictures}
            box = rectangle(10, 10, 60, 50)
            labels = [
                instance(picture, kind, box, bbox=[10, 10, 50, 40], area=2000)
                for picture in sizes
                for kind in kinds
            ]
            write_set(tmp_path, sizes, kinds, labels, name=f"{name}_{part}.json")
    settings = json.loads((EXAMPLES / "tiny.json").read_text())
    small = small_config("decoupled_light").to_dict()["architecture"]
    del small["num_classes"]
    settings["architecture"] |= {**small, "backbone": "efficientnet_lite0"}
    settings["stages"] = [
        {**stage, "epochs": 1, "size": 64, "workers": 0, "warmup": 1} for stage in settings["stages"]
    ]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    main = runpy.run_path(str(EXAMPLES / "train_tiny.py"))["main"]
    main(tmp_path, tmp_path, published[1], tmp_path / "run", tmp_path / "settings.json")
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "run" / f"stage{len(settings['stages'])}"
    assert SOLO.from_pretrained(folder).config.categories.names == ("person", "cat")


def test_settings_of_the_embedded_model_are_those_it_was_trained_with():
    settings = json.loads((EXAMPLES / "tiny.json").read_text())
    config = SOLO.from_pretrained("tiny", device="cpu").config.to_dict()
    for section in ("architecture", "preprocessing"):
        for name, value in settings[section].items():
            assert json.loads(json.dumps(config[section][name])) == value, name
    assert all(Recipe.from_dict(stage).augment == "jitter" for stage in settings["stages"])
