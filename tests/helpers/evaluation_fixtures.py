"""Fixtures for tests of evaluation, used through ``pytest_plugins``."""

import pytest
from helpers.coco_sets import content, draw_images, write
from helpers.oracle_segmenter import OracleSegmenter

from solo_infer import SOLO, PostprocessConfig


@pytest.fixture
def oracle(small_model):
    """Model that returns the ground truth."""
    return OracleSegmenter(small_model.config, small_model.network)


@pytest.fixture
def model(oracle, monkeypatch):
    """Model that returns the ground truth with shifted masks."""
    monkeypatch.setattr(OracleSegmenter, "shift", 5.0)
    return oracle


@pytest.fixture(scope="session")
def real(small_model):
    """Model with a network that finds a dozen instances."""
    return small_model.with_thresholds(PostprocessConfig(nms_pre=12, sigma=10.0))


@pytest.fixture(scope="session")
def data_set(tmp_path_factory, photo):
    """Folder of the images and annotation file with cats, dogs and birds."""
    folder = tmp_path_factory.mktemp("data")
    return draw_images(folder / "images", content(), photo), write(folder / "annotations.json", content())


@pytest.fixture
def other_annotations(tmp_path):
    """Return a function that writes an annotation file with other categories."""

    def write_with(*categories):
        values = content()
        values["categories"] = [{"id": number, "name": name} for number, name in categories]
        names = dict(categories)
        values["annotations"] = [entry for entry in values["annotations"] if entry["category_id"] in names]
        return write(tmp_path / "other.json", values)

    return write_with


@pytest.fixture
def no_predictions(monkeypatch):
    """Fail the test on any prediction."""

    def stream(self, *arguments, **options):
        pytest.fail("predicted although the data set is invalid")

    monkeypatch.setattr(SOLO, "stream", stream)
    monkeypatch.setattr(OracleSegmenter, "stream", stream)
