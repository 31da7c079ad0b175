"""File names that the file system encoding of the process lacks."""

import os
import subprocess
import sys

import pytest
from helpers.coco_sets import content, draw_images, write
from helpers.paths import ROOT


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file system encoding to choose")
def test_the_encoding_is_named_as_the_reason(tmp_path):
    values, name = content(), "\u56fe\u7247/caf\u00e9.png"
    values["images"][2]["file_name"] = name
    draw_images(tmp_path / "images", values)
    path = write(tmp_path / "annotations.json", values)
    data = ["--images", str(tmp_path / "images"), "--annotations", str(path), "--device", "cpu"]
    code = (
        "from solo_infer.cli.main import main\n"
        f"main(['eval', '--model', 'tiny', *{data!r}])\n"
        f"main(['train', '--model', 'tiny', *{data!r}, '--output', {str(tmp_path / 'run')!r}])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SOLO_INFER_OFFLINE": "1"}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=200, env=environment)
    errors = process.stderr.decode("ascii")
    assert "Traceback" not in errors
    assert errors.count("The file system encoding of this process, ascii, lacks characters of") == 2
    assert errors.count("PYTHONUTF8=1") == 2
