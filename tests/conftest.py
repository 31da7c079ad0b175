"""Fixtures that all tests share."""

import functools
import gc
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.faulty_server import running_server
from helpers.models import (
    HEADS,
    YOLACT_VARIANTS,
    small_config,
    small_network,
    small_tiny_config,
    small_tiny_network,
    small_yolact_config,
    small_yolact_network,
    variant_of,
)
from helpers.paths import DATA, KIT

from solo_infer import SOLO, YOLACT
from solo_infer.diagnostics.procedural_weights import CALIBRATION
from solo_infer.diagnostics.verify import procedural_model
from solo_infer.runtime import environment
from solo_infer.runtime.device import full_float32
from solo_infer.segmenters.tiny import Tiny


def pytest_collection_finish():
    """Take what stays until the end out of the garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """Give each test an empty cache, without the settings, mirrors and proxies of the machine."""
    for name in list(os.environ):
        if name.startswith("SOLO_INFER_") or name.lower().endswith("_proxy") or name == "HF_HUB_OFFLINE":
            monkeypatch.delenv(name)
    monkeypatch.setenv(environment.HOME, str(tmp_path / "solo_infer_home"))
    monkeypatch.setenv(environment.ADAPT_THREADS, "0")  # results with equal bits on a busy machine


@pytest.fixture
def no_plots(monkeypatch):
    """Keep training runs from plotting, which takes most of the time of a small run."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # importing it raises


@pytest.fixture
def server():
    """Start an HTTP server on this machine that can misbehave."""
    with running_server() as server:
        yield server


@pytest.fixture
def without_tf32():
    """Make float32 on CUDA comparable with the CPU."""
    with full_float32():
        yield


@pytest.fixture
def two_cards(monkeypatch):
    """Simulate two CUDA devices, and return their properties."""
    card = SimpleNamespace(name="Card", major=9, minor=0, total_memory=3 << 30, multi_processor_count=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    return card


@pytest.fixture(scope="session")
def photo_path():
    return DATA / "chelsea.png"


@pytest.fixture(scope="session")
def photo(photo_path):
    from PIL import Image

    return np.array(Image.open(photo_path).convert("RGB"))


@pytest.fixture(scope="session")
def kit():
    """Return the directory of mmdet's full results, which is beside some checkouts only."""
    if not (KIT / "goldens").is_dir():
        pytest.skip("the reference kit (../shared/reference) is not beside this checkout")
    return KIT


@pytest.fixture(scope="session")
def procedural():
    """Return a function that returns a published model with procedural weights, built once."""

    @functools.cache
    def build(name):
        assert name in CALIBRATION
        return procedural_model(name)

    return build


@pytest.fixture(scope="session")
def small_models():
    """Return small models of the four heads on the fastest ResNet, with the classes cat, dog and bird."""
    configs = {head: variant_of(small_config(head), {"backbone": "resnet18"}) for head in HEADS}
    return {head: SOLO(config, small_network(config)) for head, config in configs.items()}


@pytest.fixture(scope="session")
def small_model(small_models):
    return small_models["decoupled_light"]


@pytest.fixture(scope="session")
def small_yolacts():
    """Return small models of both variants of YOLACT, with the classes cat, dog and bird."""
    configs = {variant: small_yolact_config(variant) for variant in YOLACT_VARIANTS}
    return {variant: YOLACT(config, small_yolact_network(config)) for variant, config in configs.items()}


@pytest.fixture(scope="session")
def small_tiny():
    """Return a small Tiny model, with the classes cat, dog and bird."""
    config = small_tiny_config()
    return Tiny(config, small_tiny_network(config))
