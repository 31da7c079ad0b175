"""What the tests share: models, the photo, the reference kit where it is there, a network that is off."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from solo_infer import _environment
from solo_infer.categories import Categories
from solo_infer.config import Architecture, ModelConfig, Preprocessing, yolact_preset
from solo_infer.models import build_network
from solo_infer.procedural import CALIBRATION
from solo_infer.segmenter import SOLO, YOLACT
from solo_infer.verify import procedural_model
from solo_infer.yolact_config import YolactArchitecture

DATA = Path(__file__).parent / "data"
KIT = Path(__file__).resolve().parents[2] / "shared" / "reference"
HEADS = ("solo", "decoupled", "decoupled_light")
YOLACT_HEADS = ("yolact", "yolact_author")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """Give each test an empty cache and no settings, mirrors or proxies of the machine it runs on."""
    for name in list(os.environ):
        if name.startswith("SOLO_INFER_") or name.lower().endswith("_proxy") or name == "HF_HUB_OFFLINE":
            monkeypatch.delenv(name)
    monkeypatch.setenv(_environment.HOME, str(tmp_path / "solo_infer_home"))


@pytest.fixture(scope="session")
def photo_path():
    return DATA / "chelsea.png"


@pytest.fixture(scope="session")
def photo(photo_path):
    from PIL import Image

    return np.array(Image.open(photo_path).convert("RGB"))


@pytest.fixture(scope="session")
def kit():
    """The reference kit with mmdet's full results, beside some checkouts only."""
    if not (KIT / "goldens").is_dir():
        pytest.skip("the reference kit (../shared/reference) is not beside this checkout")
    return KIT


@pytest.fixture(scope="session")
def procedural():
    """Return a function that gives the published models with procedural weights, each made once."""
    made = {}

    def give(name):
        assert name in CALIBRATION
        if name not in made:
            made[name] = procedural_model(name)
        return made[name]

    return give


def small_config(head):
    """Return a SOLO of three classes that takes milliseconds."""
    return ModelConfig(
        Architecture(
            head=head,
            num_classes=3,
            num_grids=(10, 8, 6, 4, 3),
            stacked_convs=2,
            pyramid_channels=32,
            head_channels=32,
        ),
        Preprocessing(short_side=96, long_side=160),
        categories=Categories(("cat", "dog", "bird")),
    )


def small_network(config):
    """Return a network with random weights that finds a few dozen candidates of blob-like masks."""
    torch.manual_seed(7)
    network = build_network(config.architecture)
    with torch.no_grad():
        for name, parameter in network.mask_head.named_parameters():
            if "conv_mask" in name:
                parameter.mul_(20 if name.endswith("weight") else 1)
            if name == "conv_cls.weight":
                parameter.mul_(8)
            if name == "conv_cls.bias":
                parameter.fill_(-3.0)
    return network.requires_grad_(False)


@pytest.fixture(scope="session")
def small_models():
    """The three heads as small models of the classes cat, dog and bird."""
    configs = {head: small_config(head) for head in HEADS}
    return {head: SOLO(config, small_network(config)) for head, config in configs.items()}


@pytest.fixture(scope="session")
def small_model(small_models):
    return small_models["decoupled_light"]


def small_yolact_config(head):
    """Return a YOLACT of three classes that takes milliseconds."""
    config = yolact_preset(head, side=96, categories=Categories(("cat", "dog", "bird")))
    architecture = YolactArchitecture(
        head,
        num_classes=3,
        anchor_sizes=(12, 24, 48, 72, 96),
        strides=(8, 16, 32, 48, 96),
        pyramid_channels=32,
    )
    return replace(config, architecture=architecture)


def small_yolact_network(config):
    """Return a network with random weights that finds a few dozen candidates of blob-like masks."""
    torch.manual_seed(7)
    network = build_network(config.architecture)
    head = network.bbox_head
    with torch.no_grad():
        for conv, gain in ((head.conv_cls, 0.6), (head.conv_reg, 0.3), (network.mask_head.protonet[10], 6.0)):
            conv.weight.sub_(conv.weight.mean(dim=(1, 2, 3), keepdim=True)).mul_(gain)
        head.conv_cls.bias.view(3, -1)[:, -1] = 4.0
        network.mask_head.segm_branch.segm_conv.weight.mul_(0.1)
    return network.requires_grad_(False)


@pytest.fixture(scope="session")
def small_yolacts():
    """Both kinds of YOLACT as small models of the classes cat, dog and bird."""
    configs = {head: small_yolact_config(head) for head in YOLACT_HEADS}
    return {head: YOLACT(config, small_yolact_network(config)) for head, config in configs.items()}
