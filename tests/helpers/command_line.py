"""Helpers for tests of the command line."""

import os
import subprocess
import sys

from helpers.paths import ROOT

BODIES = {"tiny_a": b"weights of a " * 400, "tiny_b": b"weights of b " * 500}


def program(*arguments, **options):
    """Run the real program and return its exit code, stdout and stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-m", "solo_infer", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        **options,
    )
    return process.returncode, process.stdout, process.stderr


def files_below(folder):
    """Return the relative paths of all files in a folder and its subfolders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_clear(err, *parts):
    """Check that an error message has these parts and no traceback."""
    assert "Traceback" not in err
    for part in parts:
        assert part in err
