"""Fixtures for tests of the command line; test modules list this one in ``pytest_plugins``."""

import hashlib

import pytest
from helpers.command_line import BODIES
from helpers.faulty_server import content, running_server
from PIL import Image

# The unused modules are imported here because they would keep a patched manifest if a test imported them.
from solo_infer import SOLO, PostprocessConfig
from solo_infer.cli.main import main
from solo_infer.runtime import environment
from solo_infer.segmenters import auto  # noqa: F401
from solo_infer.weights import (
    load,  # noqa: F401
    manifest,
)
from solo_infer.weights.manifest import ManifestEntry


@pytest.fixture(scope="session")
def saved(small_model, tmp_path_factory):
    """Return the path of a model that finds a dozen instances with scores from 0.1 to 0.9."""
    model = small_model.with_thresholds(PostprocessConfig(nms_pre=12, sigma=10.0))
    return str(model.save_pretrained(tmp_path_factory.mktemp("saved") / "small"))


@pytest.fixture(scope="session")
def loaded(saved):
    return SOLO.from_pretrained(saved, device="cpu")


@pytest.fixture
def run(loaded, saved, monkeypatch, capsys):
    """Return a function that runs the command line on the CPU and returns exit code, stdout and stderr.

    The saved model is loaded once. ``run.loadings`` lists name and options of each call of ``load_model``.
    """
    loadings = []
    load_model = auto.load_model

    def load_recorded(name, **options):
        loadings.append((name, options))
        return loaded if name == saved else load_model(name, **options)

    monkeypatch.setattr(auto, "load_model", load_recorded)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    run.loadings = loadings
    return run


@pytest.fixture
def photos(photo, tmp_path, monkeypatch):
    """Return a working directory with a folder of three photos, one of them in a subfolder."""
    folder = tmp_path / "work" / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, width in (("1.png", 150), ("2.jpg", 120), ("deep/1.png", 90)):
        Image.fromarray(photo).resize((width, 100)).save(folder / name)
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.fixture
def published(monkeypatch):
    """Replace the published models by two small files without sources; only ``mirror`` serves them."""
    entries = {
        name: ManifestEntry(
            name=name,
            family="solo",
            preset="solo_r50",
            filename=f"{name}.pth",
            sources=(),
            sha256_prefix=hashlib.sha256(body).hexdigest()[:8],
            size=None,
            license="for tests only",
            commercial_use=name == "tiny_a",
            mask_ap=1.5,
            origin="us",
        )
        for name, body in BODIES.items()
    }
    monkeypatch.setattr(manifest, "load_manifest", lambda: entries)
    return entries


@pytest.fixture
def mirror(monkeypatch):
    with running_server() as server:
        for name, body in BODIES.items():
            server.at(f"/solo/{name}.pth", content(body))
        monkeypatch.setenv(environment.MIRROR, f"{server.base}/solo")
        yield server
