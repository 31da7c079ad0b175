"""Fixtures of the tests of checkpoints and their sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.checkpoint_files import narrow_backbones, random_model
from helpers.faulty_server import isolate
from helpers.models import small_config

from solo_infer import SOLO


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    isolate(monkeypatch, home)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


@pytest.fixture
def narrow() -> Iterator[None]:
    with narrow_backbones():
        yield


@pytest.fixture
def model(narrow: None) -> SOLO:
    return random_model(small_config("decoupled_light"))
