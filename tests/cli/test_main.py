"""The command line but for ``predict``: most in this process, a few as real programs."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.command_line import BODIES, assert_clear, files_below
from helpers.faulty_server import content, forbid_sockets, status
from helpers.paths import ROOT

from solo_infer import SOLO
from solo_infer.config import PRESETS, ModelConfig
from solo_infer.config.categories import unnamed
from solo_infer.diagnostics import verify as verification
from solo_infer.runtime import environment
from solo_infer.weights import manifest

pytest_plugins = ["helpers.command_line_fixtures"]

VERBS = ("predict", "eval", "models", "info", "download", "convert", "doctor", "verify")


# --- As a program


def test_help_of_every_verb_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from solo_infer import cli\n"
        f"for verb in {VERBS!r}:\n"
        "    assert main([verb, '--help']) == 0\n"
        "assert main(['--help']) == main(['--version']) == 0\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'huggingface_hub', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"usage: solo-infer {verb}" in done.stdout


@pytest.mark.parametrize(
    "destination, code, told",
    [("| true; exit ${PIPESTATUS[0]}", 1, ""), ("> /dev/full", 1, "No space left on device")],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not a Linux system")
def test_output_that_nobody_takes(destination, code, told):
    command = f"{shlex.quote(sys.executable)} -m solo_infer models {destination}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == code
    assert_clear(done.stderr, told)
    assert bool(done.stderr) == bool(told)


# --- Usage


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "VERB"),
        (["segment"], "segment"),
        (["predict"], "IMAGE"),
        (["predict", "a.jpg", "--batch-size", "0"], "expected a whole number of at least 1, got '0'"),
        (["predict", "a.jpg", "--batch-size", "two"], "got 'two'"),
        (["predict", "a.jpg", "--min-score", "30"], "expected a number in 0..1, got '30'"),
        (["predict", "a.jpg", "--min-score", "nan"], "got 'nan'"),
        (["predict", "a.jpg", "--dtype", "float64"], "float64"),
        (["predict", "a.jpg", "--nms", "soft"], "soft"),
        (["predict", "a.jpg", "--nms-iou", "2"], "expected a number in 0..1"),
        (["predict", "a.jpg", "--image-ids", "a.json"], "--json"),
        (["download"], "MODEL"),
        (["convert", "a.pth"], "DIR"),
        (["info", "tiny", "--input-size", "0", "9"], "at least 1, got '0'"),
    ],
)
def test_wrong_usage(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_clear(err, message)


def test_version(run):
    from solo_infer import __version__

    assert run("--version") == (0, f"solo-infer {__version__}\n", "")


# --- models, info, convert


def test_models(run, published, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "weights").mkdir(parents=True)
    (home / "weights" / "tiny_b.pth").write_bytes(b"x")
    monkeypatch.setenv(environment.HOME, str(home))
    code, out, err = run("models")
    assert (code, err) == (0, "")
    head, first, second = (line.split() for line in out.splitlines())
    assert head == ["name", "mask", "AP", "cached", "origin", "license"]
    assert first == ["tiny_a", "1.5", "no", "us", "for", "tests", "only"]
    assert second[:3] == ["tiny_b", "1.5", "yes"]
    listed = json.loads(run("models", "--json")[1])
    assert [(entry["name"], entry["cached"]) for entry in listed] == [("tiny_a", False), ("tiny_b", True)]


def test_models_fit_their_columns(run):
    head, *lines = run("models")[1].splitlines()
    assert [line.split()[0] for line in lines] == manifest.available_models()
    for line in lines:
        assert line[head.index("cached") - 1] == " " and line[head.index("cached")] in "yn"
        assert line[head.index("license") - 1] == " " != line[head.index("license")]


def test_info_of_a_published_model_needs_no_weights(run, monkeypatch):
    forbid_sockets(monkeypatch)
    code, out, err = run("info", "decoupled_r50_3x")
    assert (code, err) == (0, "")
    for part in ("origin: OpenMMLab", "license: Apache-2.0", "mask_ap: 36.7", "total: 40,028,560"):
        assert part in out
    assert "head: decoupled\n" in out and "categories (80)\n  person, bicycle" in out
    facts = json.loads(run("info", "decoupled_r50_3x", "--json")[1])
    assert facts["published"]["commercial_use"] is True
    assert facts["published"]["sources"][0].startswith("https://")
    assert facts["parameters"]["total"] == 40_028_560


def test_info_of_a_directory(run, saved):
    code, out, _ = run("info", saved)
    assert code == 0
    assert "categories (3)\n  cat, dog, bird" in out and "published" not in out
    facts = json.loads(run("info", saved, "--json")[1])
    assert facts["architecture"]["num_classes"] == 3


def test_info_shows_the_layers(run):
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


def test_info_of_a_variant_needs_a_configuration_only(run, tmp_path):
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
    towers = [row.split()[2:6] for row in rows if row.startswith("Sequential: mask_convs")]
    assert towers[0] == ["[1,", "256,", "167,", "100]"] and len(towers) == 5
    assert sum("(recursive)" in row for row in rows) == 4 + 4 + 4  # both branches and the class layer
    assert "deformable" in run("info", "decoupled_light_dcn_r50")[1]


def test_info_of_an_impossible_input(run):
    code, out, err = run("info", "solo_r50", "--input-size", 3, 10**12)
    assert (code, out) == (1, "")
    assert_clear(err, "cannot take an input of (3, 1000000000000) pixels")


@pytest.mark.parametrize("verb", [["info"], ["convert"], ["download"]])
def test_unknown_models_of_other_verbs(run, verb, tmp_path):
    extra = [tmp_path / "out"] if verb == ["convert"] else []
    code, out, err = run(*verb, "solo_r50_4x", *extra)
    assert (code, out) == (1, "")
    assert_clear(err, "UnknownModelError", "Did you mean 'solo_r50_")
    assert not (tmp_path / "out").exists()


def test_convert(run, saved, loaded, tmp_path):
    from safetensors import safe_open

    code, out, err = run("convert", saved, tmp_path / "new", "--dtype", "float16")
    assert (code, out, err) == (0, f"{tmp_path / 'new'}\n", "")
    assert files_below(tmp_path / "new") == ["config.json", "model.safetensors"]
    name = "mask_head.conv_cls.weight"
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as tensors:
        assert tensors.get_tensor(name).dtype == torch.float16
    converted = SOLO.from_pretrained(tmp_path / "new", device="cpu")
    assert (converted.config, converted.dtype) == (loaded.config, torch.float32)
    expected = loaded.network.state_dict()[name].half().float()
    assert torch.equal(converted.network.state_dict()[name], expected)


def test_convert_where_it_cannot_be_written(run, saved, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, out, err = run("convert", saved, tmp_path / "file" / "new")
    assert (code, out) == (1, "")
    assert_clear(err, "CacheError", "cannot be written")


# --- download


def test_download_into_the_cache(run, published, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv(environment.HOME, str(tmp_path / "home"))
    code, out, err = run("download", "tiny_a")
    target = tmp_path / "home" / "weights" / "tiny_a.pth"
    assert (code, out, err) == (0, f"{target}\n", "")
    assert target.read_bytes() == BODIES["tiny_a"]


def test_download_of_a_bundle(run, published, mirror, tmp_path):
    bundle = tmp_path / "a bundle"
    code, out, err = run("download", "tiny_a", "tiny_b", "tiny_a", "--output", bundle)
    assert code == 0
    assert out.splitlines() == [str(bundle / "weights" / f"{name}.pth") for name in BODIES]
    for name, body in BODIES.items():
        assert (bundle / "weights" / f"{name}.pth").read_bytes() == body
    assert "tiny_b is licensed: for tests only" in err and "tiny_a is licensed" not in err
    assert f"{environment.HOME}={bundle} {environment.OFFLINE}=1" in err


def test_bundle_serves_an_offline_machine(run, published, mirror, tmp_path, monkeypatch):
    run("download", "tiny_a", "--output", tmp_path / "bundle")
    forbid_sockets(monkeypatch)
    monkeypatch.delenv(environment.MIRROR)
    monkeypatch.setenv(environment.HOME, str(tmp_path / "bundle"))
    monkeypatch.setenv(environment.OFFLINE, "1")
    code, out, _ = run("download", "tiny_a")
    assert (code, out) == (0, f"{tmp_path / 'bundle' / 'weights' / 'tiny_a.pth'}\n")


def test_one_failing_download_does_not_stop_the_others(run, published, mirror, tmp_path):
    mirror.at("/solo/tiny_a.pth", status(404))
    code, out, err = run("download", "tiny_a", "tiny_b", "--output", tmp_path / "bundle")
    assert code == 1
    assert out == f"{tmp_path / 'bundle' / 'weights' / 'tiny_b.pth'}\n"
    assert_clear(err, "DownloadError: No source could deliver tiny_a", "HTTP 404", "1 failed, 1 done")
    assert environment.OFFLINE not in err


def test_wrong_content_is_refused(run, published, mirror, tmp_path):
    mirror.at("/solo/tiny_a.pth", content(b"something else"))
    code, out, err = run("download", "tiny_a", "--output", tmp_path / "bundle")
    assert (code, out) == (1, "")
    assert_clear(err, "SHA-256")
    assert not (tmp_path / "bundle" / "weights" / "tiny_a.pth").exists()


def test_bundle_where_it_cannot_be_written(run, published, mirror, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, out, err = run("download", "tiny_a", "--output", tmp_path / "file" / "bundle")
    assert (code, out) == (1, "")
    assert_clear(err, "CacheError")


# --- doctor, verify


def test_doctor(run, monkeypatch):
    report = {"problems": [{"problem": "p", "cure": "c"}]}
    monkeypatch.setattr("solo_infer.diagnostics.doctor.collect_report", lambda: report)
    monkeypatch.setattr("solo_infer.diagnostics.doctor.format_report", lambda report: "as text")
    assert run("doctor") == (0, "as text\n", "")
    code, out, err = run("doctor", "--json")
    assert (code, json.loads(out), err) == (0, report, "")


def test_verify_of_this_cpu(run, monkeypatch):
    """With real tolerances but for one, which no machine can meet."""
    strict = dataclasses.replace(verification.TOLERANCES[torch.float32], mask_scores=-1.0)
    monkeypatch.setitem(verification.TOLERANCES, torch.float32, strict)
    code, out, err = run("verify", "--models", "decoupled_light_r50", "--device", "cpu")
    assert (code, err) == (1, "")
    head, *lines, last = out.splitlines()
    assert head.split() == ["model", "quantity", "difference", "tolerance"]
    assert len(lines) == 7 and all(line.endswith("ok") or "mask scores" in line for line in lines)
    assert last == "1 of 7 checks failed (cpu, float32)"


@pytest.fixture
def checks(monkeypatch):
    """Let verification find given checks, and return the list of them."""
    given = []

    def verify(device, dtype, models):
        assert (device, dtype) == (torch.device("cpu"), "float16")
        for check in given:
            if isinstance(check, Exception):
                raise check
            yield check

    monkeypatch.setattr(verification, "verify", verify)
    return given


VERIFY = ("verify", "--device", "cpu", "--dtype", "float16")


def test_verify_tells_failures(run, checks):
    checks += [verification.Check("m", "q", 1e-5, 1e-4), verification.Check("m", "r", 2e-4, 1e-4)]
    code, out, _ = run(*VERIFY)
    assert code == 1
    assert "1.00e-05       1e-04  ok" in out and "2.00e-04       1e-04  FAILED" in out
    assert out.endswith("1 of 2 checks failed (cpu, float16)\n")


def test_verify_as_json_without_nan(run, checks):
    checks += [verification.Check("m", "q", float("nan"), 1e-4), verification.Check("m", "r", 0.0, 0.0)]
    code, out, _ = run(*VERIFY, "--json")
    assert code == 1
    assert json.loads(out, parse_constant=pytest.fail) == [
        {"model": "m", "quantity": "q", "difference": None, "limit": 1e-4, "passed": False},
        {"model": "m", "quantity": "r", "difference": 0.0, "limit": 0.0, "passed": True},
    ]


def test_verify_of_a_device_that_breaks_down(run, checks):
    checks += [verification.Check("m", "q", 0.0, 0.0), RuntimeError("no kernel for Half")]
    code, _, err = run(*VERIFY)
    assert code == 1
    assert_clear(err, "DeviceError: cpu cannot compute this in float16: no kernel for Half")


def test_verify_of_a_good_device(run, checks):
    checks += [verification.Check("m", "q", 0.0, 0.0)]
    code, out, _ = run(*VERIFY)
    assert code == 0
    assert out.endswith("none of 1 checks failed (cpu, float16)\n")


def test_verify_of_an_unknown_model(run):
    code, out, err = run("verify", "--models", "solo_r101", "solo_r50_3x")
    assert (code, out) == (1, "")
    assert_clear(err, "ConfigError", "solo_r101, solo_r50_3x", "decoupled_light_r50")
