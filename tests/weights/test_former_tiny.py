"""Models like the embedded one of version 0.1, Decoupled Light SOLO on EfficientNet-Lite0, still work."""

import shutil
from dataclasses import replace

import pytest
import torch
from helpers.checkpoint_files import random_model
from helpers.paths import DATA
from helpers.training_runs import NUTS_AND_BOLTS, QUICK_FINE_TUNE, write_nuts_and_bolts
from safetensors.torch import load_file, save_file

from solo_infer import SOLO, load_model
from solo_infer.config import SOLOConfig
from solo_infer.training import fine_tune
from solo_infer.weights.checkpoint import read_config

CONFIG = DATA / "tiny_format1_config.json"


@pytest.fixture(scope="module", params=["format 1", "format 2"])
def saved(request, tmp_path_factory):
    """Save a model with random weights, with the configuration of version 0.1 or of this one."""
    folder = tmp_path_factory.mktemp("former") / "tiny"
    model = random_model(read_config(CONFIG))
    with torch.no_grad():
        model.network.mask_head.conv_cls.bias.fill_(-1.0)
    model.save_pretrained(folder)
    if request.param == "format 1":
        weights = folder / "model.safetensors"
        save_file(load_file(weights), weights, {"format": "pt"})  # without the identifier of config.json
        shutil.copy(CONFIG, folder / "config.json")
    return folder


def test_model_loads_and_predicts(saved, photo):
    model = SOLO.from_pretrained(saved, device="cpu")
    assert type(model) is type(load_model(saved, device="cpu")) is SOLO
    assert isinstance(model.config.architecture, SOLOConfig)
    assert (model.config.architecture.head, model.config.architecture.backbone) == (
        "decoupled_light",
        "efficientnet_lite0",
    )
    assert len(model.config.categories) == 12 and model.config.preprocessing.short_side == 448
    result = model(photo, thresholds=replace(model.config.thresholds, filter_thr=0.0, score_thr=0.01))
    assert len(result) > 0 and result.image_size == photo.shape[:2]
    bare = SOLO.from_pretrained(saved / "model.safetensors", device="cpu")
    assert bare.config.architecture.backbone == "efficientnet_lite0"


@pytest.mark.parametrize("saved", ["format 1"], indirect=True)
def test_model_is_fine_tuned(saved, no_plots, tmp_path):
    data = write_nuts_and_bolts(tmp_path / "data")
    recipe = replace(QUICK_FINE_TUNE, epochs=1, augment="jitter", crop_size=64)
    run = fine_tune(SOLO.from_pretrained(saved, device="cpu"), data, tmp_path / "run", recipe, device="cpu")
    trained = SOLO.from_pretrained(run, device="cpu")
    assert set(trained.config.categories.names) == set(NUTS_AND_BOLTS)
    assert trained.config.architecture.backbone == "efficientnet_lite0"
    assert all(torch.isfinite(tensor).all() for tensor in trained.network.state_dict().values())
