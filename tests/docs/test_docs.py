"""The commands and the code of all pages run, or parse if they need a GPU or a large download."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from helpers.documentation import (
    MARKS,
    PAGES,
    README,
    page_name,
    read_blocks,
    run_command,
    solo_infer_arguments,
)
from helpers.exporters import require_exporter
from helpers.paths import ROOT

from solo_infer.cli.main import build_parser

BLOCKS = [(page_name(page), block) for page in PAGES for block in read_blocks(page)]
RUN_PAGES = [page for page in PAGES if any(block.mark in ("run", "torchrun") for block in read_blocks(page))]
COMMANDS = [(page, line) for page, block in BLOCKS if block.language == "sh" for line in block.lines]
# Files that a page's commands and code leave behind.
WRITTEN = {
    "README.md": ["street_segmented.jpg", "drawn/one_segmented.jpg", "results.json", "run/recipe.json"],
    "docs/bi-v100.md": ["street_segmented.jpg", "tiny.onnx"],
    "docs/evaluation.md": ["detections.json"],
    "docs/export.md": ["street_segmented.jpg", "tiny_heads.onnx"],
    "docs/fine-tuning.md": [
        "run/best/model.safetensors",
        "run/config.json",
        "run/evaluation.csv",
        "run/training.csv",
        "shared/model.safetensors",
        "small/model.safetensors",
        "from_python/model.safetensors",
    ],
    "docs/inputs-and-results.md": ["drawn/one_segmented.jpg", "drawn/two_segmented.jpg", "results.json"],
    "docs/models.md": ["light/config.json", "light/model.safetensors", "street_segmented.jpg"],
    "docs/offline.md": ["street_segmented.jpg", "bundle"],
    "docs/outputs.md": [
        "drawn.png",
        "dataset.json",
        "table.csv",
        "yolo/labels/one.txt",
        "crops",
        "labelme/one.json",
    ],
    "docs/videos.md": ["cars.mp4", "drawn.mp4"],
    "docs/large-runs.md": [
        "results-0-of-2.json",
        "results-1-of-2.json",
        "table-0-of-2.csv",
        "table-1-of-2.csv",
    ],
    "examples/README.md": ["segmented.png"],
}


def test_every_block_has_a_known_mark():
    assert {block.mark for _, block in BLOCKS} <= MARKS
    assert {block.language for _, block in BLOCKS} == {"sh", "python"}


@pytest.mark.parametrize("page", RUN_PAGES, ids=page_name)
def test_page_runs_from_top_to_bottom(page, workspace, monkeypatch, capsys):
    if "onnx" in page.read_text(encoding="utf-8"):
        pytest.importorskip("onnxruntime")
        require_exporter()
    if "clip.mp4" in page.read_text(encoding="utf-8"):
        pytest.importorskip("av")
    for block in read_blocks(page):
        if block.mark == "torchrun":
            _run_torchrun(block.text)
        elif block.mark == "run" and block.language == "python":
            exec(compile(block.text, page.name, "exec"), {})
        elif block.mark == "run":
            for line in block.lines:
                code, output = run_command(line, monkeypatch)
                assert code == 0, (line, capsys.readouterr().err)
                _check_output(line, output)
    for name in WRITTEN.get(page_name(page), []):
        assert (workspace / name).exists(), name


def _run_torchrun(text):
    program, *arguments = shlex.split(text)
    assert program == "torchrun"
    _run_python("-m", "torch.distributed.run", *arguments, "--device", "cpu")


def _run_python(*arguments):
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=variables)
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_blocks_for_ray_run(workspace):
    pytest.importorskip("ray", reason="the blocks need Ray, of the extra ray")
    pytest.importorskip("pyarrow", reason="the blocks need pyarrow, of the extra ray")
    blocks = [block for page in PAGES for block in read_blocks(page) if block.mark == "ray"]
    for block in blocks:
        if block.language == "python":
            _run_python("-c", block.text)
        for line in block.lines if block.language == "sh" else []:
            _run_python("-m", "solo_infer", *solo_infer_arguments(line))
    assert len(blocks) == 3
    assert all(
        (workspace / name).is_file() for name in ("results.json", "table.csv", "run/part-000000.parquet")
    )


def _check_output(line, output):
    command = (solo_infer_arguments(line) or [""])[0]
    if "--json" in shlex.split(line):
        report = json.loads(output)
        if command == "benchmark":
            (timing,) = report
            assert timing["name"] == "tiny" and timing["runs"] == 3
    elif command == "eval":
        assert "AP" in output


def test_detections_of_the_evaluation_page_are_coco_results(workspace, monkeypatch):
    (line,) = [line for page, line in COMMANDS if page == "docs/evaluation.md" and "--save-json" in line]
    assert run_command(line, monkeypatch)[0] == 0
    assert isinstance(json.loads((workspace / "detections.json").read_text(encoding="utf-8")), list)


def test_readme_draws_only_the_files_of_a_folder(workspace, monkeypatch):
    (line,) = [line for page, line in COMMANDS if page == "README.md" and "--save-json" in line]
    assert run_command(line, monkeypatch)[0] == 0
    assert [path.name for path in (workspace / "drawn").iterdir()] == ["one_segmented.jpg"]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_command_parses(page, line):
    arguments = solo_infer_arguments(line)
    if arguments is not None:
        assert build_parser().parse_args(arguments).run
        return
    words = shlex.split(line)
    assert words[0] in {"pip", "python", "ruff", "codespell", "mypy", "lint-imports", "pre-commit", "."} | {
        "accelerate",
        "gunicorn",
        "mkdocs",
        "curl",
        "ixsmi",
        "ixrtexec",
        "igie-exec",
        "ray",
        "OMP_NUM_THREADS=1",
    }
    if words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize(
    ("page", "text"), [(page, block.text) for page, block in BLOCKS if block.language == "python"]
)
def test_code_compiles(page, text):
    compile(text, page, "exec")


def _anchor(heading):
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_anchor, headings), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=page_name)
def test_paths_in_code_spans_exist(page):
    text = page.read_text(encoding="utf-8")
    folders = r"`((?:solo_infer|tests|benchmarks|examples|docs|\.ci)/[\w./-]+)`"
    for name in re.findall(folders, text):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_pages_are_linked_from_the_readme_or_the_first_page_of_the_docs():
    first_page = ROOT / "docs" / "README.md"
    linked = [
        (page.parent / target).resolve()
        for page in (README, first_page)
        for target in re.findall(r"\]\(([\w./-]+)", page.read_text(encoding="utf-8"))
    ]
    assert not [page_name(page) for page in PAGES if page not in (README, first_page, *linked)]
