"""The README is true: its commands and code run, its table is the manifest's."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from helpers.paths import DATA, ROOT
from PIL import Image

from solo_infer import SOLO
from solo_infer.cli.main import main
from solo_infer.config import find_preset
from solo_infer.diagnostics import procedural_weights
from solo_infer.models import build_network
from solo_infer.runtime import environment
from solo_infer.weights import manifest
from solo_infer.weights.cache_files import file_sha256
from solo_infer.weights.key_mapping import mmdet_name

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- (\w+) -->\n)?```(\w+)\n(.*?)```", README, re.DOTALL)
TRAINER = ROOT / "examples" / "train_tiny.py"
USED = {
    "decoupled_r50_3x": "decoupled_r50",
    "decoupled_light_r50_3x": "decoupled_light_r50",
    "yolact_r50": "yolact_r50",
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """A mirror that has procedural weights in place of the published ones, in the publisher's layout."""
    folder = tmp_path_factory.mktemp("mirror")
    for name, preset in USED.items():
        weights = {mmdet_name(key): value for key, value in procedural_weights.state_dict(preset).items()}
        path = folder / manifest.find_entry(name).filename
        torch.save({"meta": {}, "state_dict": weights}, path, _use_new_zipfile_serialization=False)
    return folder


@pytest.fixture
def street(mirror, monkeypatch, tmp_path):
    """A directory as the README's reader has it, whose downloads come from the mirror."""
    entries = {
        name: dataclasses.replace(entry, sources=(), sha256_prefix=file_sha256(mirror / entry.filename))
        for name, entry in manifest.load_manifest().items()
        if name in USED
    } | {manifest.EMBEDDED_MODEL: manifest.find_entry(manifest.EMBEDDED_MODEL)}
    monkeypatch.setattr(manifest, "load_manifest", lambda: entries)
    monkeypatch.setattr("solo_infer.weights.load.load_manifest", lambda: entries)
    monkeypatch.setattr("solo_infer.diagnostics.model_info.load_manifest", lambda: entries)
    monkeypatch.setattr("solo_infer.diagnostics.doctor.load_manifest", lambda: entries)
    monkeypatch.setenv(environment.MIRROR, str(mirror))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    with Image.open(DATA / "chelsea.png") as photo:
        photo.save("street.jpg")
        photo.resize((200, 133)).save("photos/one.jpg")
        photo.resize((133, 200)).save("photos/trip/two.jpg")
    cat = {"category_id": 17, "bbox": [40, 20, 100, 90], "area": 9000, "iscrowd": 0}
    cat["segmentation"] = [[40, 20, 140, 20, 140, 110, 40, 110]]
    sizes = {"one.jpg": (200, 133), "trip/two.jpg": (133, 200)}
    annotations = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, (name, (width, height)) in enumerate(sizes.items(), start=1)
        ],
        "categories": [{"id": 17, "name": "cat"}],
        "annotations": [{**cat, "id": number, "image_id": number} for number in (1, 2)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(annotations), encoding="utf-8")
    return tmp_path


def blocks(kind, language):
    found = [text for mark, name, text in BLOCKS if (mark, name) == (kind, language)]
    assert found
    return found


def run_command(line, monkeypatch):
    """Run "NAME=VALUE ... solo-infer VERB ..." in this process and return the exit code."""
    words = shlex.split(line)
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("=", 1))
        assert words[0] == "solo-infer"
        return main(words[1:])


@pytest.mark.parametrize("block", blocks("run", "sh"))
def test_commands(block, street, monkeypatch, capsys):
    if "export" in block:
        pytest.importorskip("onnx")
    for line in block.splitlines():
        assert run_command(line, monkeypatch) == 0, (line, capsys.readouterr().err)
    if "drawn" in block:
        assert sorted(path.name for path in (street / "drawn").iterdir()) == ["one_segmented.jpg"]
        assert (street / "results.json").is_file()
        assert (street / "light" / "model.safetensors").is_file()
    elif "train" in block:
        assert {"best", "config.json", "training.csv"} <= {path.name for path in (street / "run").iterdir()}
    elif "eval" in block:
        assert "AP" in capsys.readouterr().out
        assert isinstance(json.loads((street / "detections.json").read_text(encoding="utf-8")), list)
    elif "benchmark" in block:
        (found,) = json.loads(capsys.readouterr().out)
        assert found["name"] == "tiny" and found["runs"] == 3
    elif "export" in block:
        assert (street / "tiny.onnx").stat().st_size > 1 << 20
    else:
        assert (street / "street_segmented.jpg").is_file()


def test_several_processes(street):
    (block,) = blocks("torchrun", "sh")
    program, *arguments = shlex.split(block)
    assert program == "torchrun"
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (street / "shared" / "model.safetensors").is_file()


@pytest.mark.parametrize("code", blocks("run", "python"))
def test_python(code, street, capsys):
    exec(compile(code, "README.md", "exec"), {})
    if "save" in code:
        assert (street / "street_segmented.jpg").is_file()
        assert '"instances"' in capsys.readouterr().out


@pytest.mark.parametrize(
    "script", sorted({*(ROOT / "examples").glob("*.py")} - {TRAINER}), ids=lambda path: path.name
)
def test_examples(script, street, mirror, capsys):
    model = str(mirror / manifest.find_entry("decoupled_light_r50_3x").filename)
    arguments = {
        "one_photo.py": ["street.jpg", model],
        "folder_to_coco.py": ["photos", "results.json", model],
        "shared_by_threads.py": ["photos", model],
    }[script.name]
    scope = {"__name__": "example"}
    exec(compile(script.read_text(encoding="utf-8"), script.name, "exec"), scope)
    scope["main"](*arguments)
    assert "one.jpg" in capsys.readouterr().out or (street / "segmented.png").is_file()


def test_every_command_is_run_by_a_test_or_by_ci():
    assert {mark for mark, _, _ in BLOCKS} == {"install", "test", "run", "torchrun"}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "command_after install" in script
    assert "command_after test" in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def model_table():
    """Return the README's model table as the manifest has it."""
    lines = [
        "| name | mask AP | parameters | license | commercial use | trained by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry in manifest.load_manifest().values():
        if entry.folder is not None:  # which has a section of its own
            continue
        network = build_network(find_preset(entry.preset).architecture, device="meta")
        count = sum(parameter.numel() for parameter in network.parameters())
        allowed = "yes" if entry.commercial_use else "**no**"
        lines.append(
            f"| `{entry.name}` | {entry.mask_ap} | {count / 1e6:.1f} M | {entry.license} | {allowed} "
            f"| {entry.origin} |"
        )
    return "\n".join(lines)


def test_model_table_is_the_manifests():
    shown = README.split("<!-- models -->\n")[1].split("\n<!-- /models -->")[0]
    assert shown == model_table()


def tiny_table():
    """Return the README's table of the embedded model as the evaluations in ``benchmarks/tiny`` have it."""
    lines = ["| photos | class | AP | AP50 | instances |", "| --- | --- | --- | --- | --- |"]
    for name, shown in (("person_val", "person complete"), ("all80_val", "all classes complete")):
        found = json.loads((ROOT / "benchmarks" / "tiny" / f"{name}.json").read_text(encoding="utf-8"))
        for row in found["per_class"]:
            numbers = f"{100 * row['AP']:.1f} | {100 * row['AP50']:.1f} | {row['instances']}"
            lines.append(f"| {found['images']}, {shown} | {row['name']} | {numbers} |")
    return "\n".join(lines)


def test_table_of_the_embedded_model():
    shown = README.split("<!-- tiny -->\n")[1].split("\n<!-- /tiny -->")[0]
    assert shown == tiny_table()
    names = {line.split(" | ")[1] for line in shown.splitlines()[2:]}
    assert names == set(SOLO.from_pretrained("tiny", device="cpu").config.categories.names)


def test_environment_variables_are_all_explained():
    names = {value for value in vars(environment).values() if str(value).startswith("SOLO_INFER_")}
    assert names <= set(re.findall(r"SOLO_INFER_\w+", README))


def test_data_files_have_their_license_note():
    notes = (DATA / "README.md").read_text(encoding="utf-8")
    for path in DATA.iterdir():
        assert path.suffix in (".npz", ".md") or path.stem.startswith("checkpoint_") or path.name in notes
