"""``solo-infer info``."""

import dataclasses
import json

from helpers.command_line import assert_clear
from helpers.faulty_server import forbid_sockets

from solo_infer.config import PRESETS, ModelConfig
from solo_infer.config.categories import unnamed

pytest_plugins = ["helpers.command_line_fixtures"]


def test_published_model_needs_no_weights(run, monkeypatch):
    forbid_sockets(monkeypatch)
    code, out, err = run("info", "decoupled_r50_3x")
    assert (code, err) == (0, "")
    for line in ("origin: OpenMMLab", "license: Apache-2.0", "mask_ap: 36.7", "total: 40,028,560"):
        assert line in out
    assert "\nfamily: solo\n" in out and "head: decoupled\n" in out
    assert "categories (80)\n  person, bicycle" in out
    facts = json.loads(run("info", "decoupled_r50_3x", "--json")[1])
    assert facts["published"]["commercial_use"] is True
    assert facts["published"]["sources"][0].startswith("https://")
    assert facts["parameters"]["total"] == 40_028_560


def test_folder(run, saved):
    code, out, _ = run("info", saved)
    assert code == 0
    assert "categories (3)\n  cat, dog, bird" in out and "published" not in out
    facts = json.loads(run("info", saved, "--json")[1])
    assert facts["architecture"]["num_classes"] == 3


def test_layers(run):
    code, out, _ = run("info", "decoupled_light_r50_3x", "--input-size", 256, 320, "--depth", 1)
    assert code == 0
    assert "Input: [1, 3, 256, 320]\nTotal parameters: 32,354,192\nTrainable parameters" in out
    assert "├─ResNet: backbone" in out and "│" not in out
    totals = run("info", "decoupled_light_r50_3x", "--depth", 0)[1]
    assert "Input: [1, 3, 512, 864]" in totals and "├" not in totals
    facts = json.loads(run("info", "decoupled_light_r50_3x", "--json")[1])
    assert facts["totals"]["parameters"] == facts["parameters"]["total"] == 32_354_192
    first = next(row for row in facts["layers"] if row["name"] == "backbone.layer1.0.conv2")
    assert first["shapes"] == [[1, 64, 128, 216]] and first["multiply_adds"] == 64 * 64 * 9 * 128 * 216
    assert (
        sum(row["multiply_adds"] for row in facts["layers"] if row["depth"] == 1)
        == (facts["totals"]["multiply_adds"])
    )


def test_config_file_needs_no_weights(run, tmp_path):
    architecture = dataclasses.replace(
        PRESETS["solo_r50"].architecture, num_classes=79, head_bias=True, extra_level="conv"
    )
    config = ModelConfig(architecture, categories=unnamed(79))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    code, out, err = run("info", tmp_path / "config.json", "--input-size", 1333, 800)
    assert (code, err) == (0, "")
    assert "Total parameters: 36,892,591\n" in out
    assert "deformable_stages: none\n" in out
    rows = [line.split("├─")[1] for line in out.splitlines() if "├─" in line]
    (branch,) = (row.split()[2:9] for row in rows if row.startswith("ConvBranch: mask_convs"))
    assert branch == ["[1,", "256,", "167,", "100]", "and", "4", "more"]
    assert sum("(recursive)" in row for row in rows) == 4  # the class layer, which all levels share
    assert "deformable" in run("info", "decoupled_light_dcn_r50")[1]


def test_impossible_input_size(run):
    code, out, err = run("info", "solo_r50", "--input-size", 3, 10**12)
    assert (code, out) == (1, "")
    assert_clear(err, "cannot take an input of (3, 1000000000000) pixels")
