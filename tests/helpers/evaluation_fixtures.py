"""Fixtures for tests of evaluation; a test module names this one in ``pytest_plugins``."""

import pytest
from helpers.coco_sets import content, draw_images, write
from helpers.oracle_segmenter import OracleSegmenter

from solo_infer import SOLO, PostprocessConfig


@pytest.fixture
def oracle(small_model):
    """A model that is always right."""
    return OracleSegmenter(small_model.config, small_model.network)


@pytest.fixture
def model(oracle, monkeypatch):
    """A model that is right more or less."""
    monkeypatch.setattr(OracleSegmenter, "shift", 5.0)
    return oracle


@pytest.fixture(scope="session")
def real(small_model):
    """A model that looks at the image, and finds a dozen instances."""
    return small_model.with_thresholds(PostprocessConfig(nms_pre=12, sigma=10.0))


@pytest.fixture(scope="session")
def data_set(tmp_path_factory, photo):
    """The folder of the images, and the annotation file of cats, dogs and birds."""
    folder = tmp_path_factory.mktemp("data")
    return draw_images(folder / "images", content(), photo), write(folder / "annotations.json", content())


@pytest.fixture
def other_annotations(tmp_path):
    """Return a function that writes an annotation file with other categories."""

    def write_with(*categories):
        values = content()
        values["categories"] = [{"id": number, "name": name} for number, name in categories]
        known = dict(categories)
        values["annotations"] = [entry for entry in values["annotations"] if entry["category_id"] in known]
        return write(tmp_path / "other.json", values)

    return write_with


@pytest.fixture
def no_predictions(monkeypatch):
    """Let a test fail that predicts anything."""

    def stream(self, *arguments, **options):
        pytest.fail("predicted, although the data set is wrong")

    monkeypatch.setattr(SOLO, "stream", stream)
    monkeypatch.setattr(OracleSegmenter, "stream", stream)
