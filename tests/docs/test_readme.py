"""The README's tables match the manifest and the logs; CI runs its install and test commands."""

import functools
import json
import os
import re

import numpy as np
import pytest
from helpers.documentation import README, read_blocks
from helpers.paths import DATA, EXAMPLES, ROOT
from PIL import Image

from solo_infer import SOLO
from solo_infer.config import find_preset
from solo_infer.models import build_network
from solo_infer.runtime import environment
from solo_infer.weights import manifest

TRACKERS = {EXAMPLES / "track_and_count.py"}  # tested in test_track_and_count.py
SERVERS = {EXAMPLES / "serve.py"}  # tested in tests/integrations
TRAINERS = {EXAMPLES / "nanodet_to_tiny.py", EXAMPLES / "train_tiny.py"}  # see tests/training
MOST_LINES = 160


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_every_command_is_run_by_a_test_or_by_ci():
    assert {block.mark for block in read_blocks(README)} == {"install", "test", "run"}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "command_after install" in script
    assert "command_after test" in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_first_block_predicts_a_photo_of_the_repository():
    first = read_blocks(README)[0]
    assert first.mark == "install"
    install, predict = first.lines
    assert install == "pip install ."
    assert predict.startswith("solo-infer predict ")
    assert (ROOT / predict.split()[-1]).is_file()


def test_picture_is_the_result_of_the_first_command(readme, tmp_path):
    photo = ROOT / read_blocks(README)[0].lines[-1].split()[-1]
    name = f"{photo.stem}_segmented.jpg"
    assert f"(docs/{name})" in readme.split("## ")[0]
    model = SOLO.from_pretrained(manifest.EMBEDDED_MODEL, device="cpu")
    model(photo).save(tmp_path / name, min_score=0.3)
    with Image.open(tmp_path / name) as drawn, Image.open(ROOT / "docs" / name) as picture:
        difference = np.asarray(drawn, dtype=np.int64) - np.asarray(picture, dtype=np.int64)
    assert np.abs(difference).mean() < 1


@functools.cache
def count_parameters(preset):
    network = build_network(find_preset(preset).architecture, device="meta")
    return sum(parameter.numel() for parameter in network.parameters())


def model_table():
    """Return the model table of the README, from the manifest."""
    lines = [
        "| name | mask AP | parameters | license | commercial use | trained by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry in manifest.load_manifest().values():
        if entry.folder is not None:  # the embedded model has its own section in docs/models.md
            continue
        count = count_parameters(entry.preset)
        allowed = "yes" if entry.commercial_use else "**no**"
        lines.append(
            f"| `{entry.name}` | {entry.mask_ap} | {count / 1e6:.1f} M | {entry.license} | {allowed} "
            f"| {entry.origin} |"
        )
    return "\n".join(lines)


def test_model_table_matches_the_manifest(readme):
    table = readme.split("<!-- models -->\n")[1].split("\n<!-- /models -->")[0]
    assert table == model_table()


def tiny_table():
    """Return the table of the embedded model, from the evaluations in ``benchmarks/tiny``."""
    lines = ["| photos | class | AP | AP50 | instances |", "| --- | --- | --- | --- | --- |"]
    for name, caption in (("person_val", "person complete"), ("all80_val", "all classes complete")):
        report = json.loads((ROOT / "benchmarks" / "tiny" / f"{name}.json").read_text(encoding="utf-8"))
        for row in report["per_class"]:
            numbers = f"{100 * row['AP']:.1f} | {100 * row['AP50']:.1f} | {row['instances']}"
            lines.append(f"| {report['images']}, {caption} | {row['name']} | {numbers} |")
    return "\n".join(lines)


def test_table_of_the_embedded_model_matches_its_evaluations(models_page):
    table = models_page.split("<!-- tiny -->\n")[1].split("\n<!-- /tiny -->")[0]
    assert table == tiny_table()
    names = {line.split(" | ")[1] for line in table.splitlines()[2:]}
    assert names == set(SOLO.from_pretrained("tiny", device="cpu").config.categories.names)


@pytest.mark.parametrize(
    "script", sorted({*EXAMPLES.glob("*.py")} - TRAINERS - TRACKERS - SERVERS), ids=lambda path: path.name
)
def test_examples(script, workspace, mirror, capsys):
    model = str(mirror / manifest.find_entry("decoupled_light_r50_3x").filename)
    arguments = {
        "one_photo.py": ["street.jpg", model],
        "folder_to_coco.py": ["photos", "results.json", model],
        "shared_by_threads.py": ["photos", model],
    }[script.name]
    scope = {"__name__": "example"}
    exec(compile(script.read_text(encoding="utf-8"), script.name, "exec"), scope)
    scope["main"](*arguments)
    assert "one.jpg" in capsys.readouterr().out or (workspace / "segmented.png").is_file()


def test_environment_variables_are_documented():
    page = (ROOT / "docs" / "offline.md").read_text(encoding="utf-8")
    names = {value for value in vars(environment).values() if re.fullmatch(r"SOLO_INFER_\w+", str(value))}
    assert names <= set(re.findall(r"SOLO_INFER_\w+", page))


def test_data_files_have_a_license_note():
    notes = (DATA / "README.md").read_text(encoding="utf-8")
    for path in DATA.iterdir():
        is_documented = path.name in notes or path.stem.startswith("checkpoint_")
        assert path.suffix in (".npz", ".md", ".py") or path.name == "__pycache__" or is_documented, path


def test_photos_of_examples_are_small_and_have_a_license_note():
    notes = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    photos = sorted(EXAMPLES.glob("*.jpg"))
    assert photos
    for path in photos:
        assert f"`{path.name}`" in notes.split("## License")[1]
        assert path.stat().st_size < 400_000
        with Image.open(path) as photo:
            assert photo.format == "JPEG"
