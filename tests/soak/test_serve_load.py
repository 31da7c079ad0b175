"""Memory of the server of examples/serve.py over many requests."""

import json
import os
import subprocess
import sys

import pytest
from helpers.paths import EXAMPLES, ROOT

for package in ("fastapi", "uvicorn", "python_multipart", "httpx"):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install 'solo-infer[serve]' httpx)")


@pytest.mark.soak
def test_load():
    """5,000 requests of a 256-pixel photo to tiny: no failure, and flat memory."""
    command = [
        *(
            sys.executable,
            str(ROOT / "benchmarks" / "serve_load.py"),
            "--photo",
            str(EXAMPLES / "street.jpg"),
        ),
        *("--requests", os.environ.get("SOLO_INFER_SOAK_IMAGES", "5000"), "--clients", "4"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    figures = json.loads(finished.stdout)
    assert figures["failures"] == {}
    assert figures["memory_mib"]["slope_per_1000_requests"] < 10
