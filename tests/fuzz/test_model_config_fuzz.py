"""Hostile config.json files: a configuration or a clear error, at once."""

import json

import pytest
from helpers.fuzzing import campaign, mutate_bytes, mutate_json, only_typed_errors

from solo_infer.config import ModelConfig, find_preset
from solo_infer.weights.checkpoint import read_config

PRESETS = ("decoupled_light_dcn_r50", "yolact_r50")


@pytest.mark.fuzz
@pytest.mark.parametrize("name", PRESETS)
def test_configurations(name):
    content = json.loads(json.dumps(find_preset(name).to_dict()))
    content["categories"]["names"] = content["categories"]["names"][:4]
    content["categories"]["ids"] = content["categories"]["ids"][:4]
    content["architecture"]["num_classes"] = 4
    valid = 0
    for rng in campaign(seed=f"config {name}"):
        with only_typed_errors(rng) as outcome:
            config = ModelConfig.from_dict(mutate_json(content, rng))
            assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        valid += outcome.error is None
    assert valid


@pytest.mark.fuzz
def test_files(tmp_path):
    path = tmp_path / "config.json"
    content = json.dumps(find_preset(PRESETS[0]).to_dict()).encode()
    path.touch()
    for rng in campaign(seed="config file"):
        path.write_bytes(mutate_bytes(content, rng))
        with only_typed_errors(rng, watched=tmp_path):
            read_config(path)
