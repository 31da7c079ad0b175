"""Models of one family are not accepted where the other is expected."""

import pytest

from solo_infer import SOLO, YOLACT, PostprocessConfig, YOLACTPostprocessConfig, load_model
from solo_infer.errors import ConfigError
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.segmenters.base import Segmenter
from solo_infer.weights.checkpoint import read_checkpoint


@pytest.fixture
def saved(small_yolacts, small_model, tmp_path):
    """Save a model of each family, and return their directories."""
    models = {"solo": small_model, "yolact": small_yolacts["mmdet"]}
    return {name: model.save_pretrained(tmp_path / name) for name, model in models.items()}


def test_from_pretrained_refuses_models_of_the_other_family(saved):
    with pytest.raises(ConfigError, match="is a yolact model .* expected one of solo, tiny. Use load_model"):
        SOLO.from_pretrained(saved["yolact"], device="cpu")
    with pytest.raises(
        ConfigError, match="is a decoupled_light model .* expected one of yolact. Use load_model"
    ):
        YOLACT.from_pretrained(saved["solo"], device="cpu")


def test_published_models_of_the_other_family_are_refused_before_the_download(monkeypatch):
    monkeypatch.setattr("solo_infer.weights.fetch.fetch", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(ConfigError, match="authors_yolact_r50 is a yolact_original model"):
        SOLO.from_pretrained("authors_yolact_r50", device="cpu")


def test_load_model_accepts_every_family(saved):
    assert type(load_model(saved["solo"], device="cpu")) is SOLO
    assert type(load_model(saved["yolact"], device="cpu")) is YOLACT
    assert type(SOLO.from_pretrained(saved["solo"], device="cpu")) is SOLO
    assert type(YOLACT.from_pretrained(saved["yolact"], device="cpu")) is YOLACT


def test_from_checkpoint(saved):
    for name, segmenter, other in (("solo", SOLO, YOLACT), ("yolact", YOLACT, SOLO)):
        assert type(segmenter.from_checkpoint(read_checkpoint(saved[name]))) is segmenter
        assert type(Segmenter.from_checkpoint(read_checkpoint(saved[name]))) is segmenter
        with pytest.raises(ConfigError, match="load_model"):
            other.from_checkpoint(read_checkpoint(saved[name]))


def test_models_are_built_with_networks_of_their_family(small_model, small_yolacts):
    yolact = small_yolacts["original"]
    for model, other in ((small_model, YOLACT), (yolact, SOLO)):
        assert type(build_segmenter(model.config, model.network)) is type(model)
        with pytest.raises(ConfigError, match=f"{other.__name__} .*{model.config.architecture.name} model"):
            other(model.config, model.network)


def test_thresholds_of_the_other_family_are_refused(small_yolacts, small_model, photo):
    for model, thresholds in (
        (small_yolacts["mmdet"], PostprocessConfig()),
        (small_model, YOLACTPostprocessConfig()),
    ):
        expected = type(model.config.thresholds).__name__
        message = f"thresholds are {type(thresholds).__name__}: a .* model takes {expected}"
        with pytest.raises(ConfigError, match=message):
            model(photo, thresholds=thresholds)
        with pytest.raises(ConfigError, match=message):
            model.with_thresholds(thresholds)
        with pytest.raises(ConfigError, match=message):
            next(model.stream([photo], thresholds=thresholds))


def test_from_pretrained_refuses_thresholds_of_the_other_family(saved):
    with pytest.raises(ConfigError, match="thresholds are YOLACTPostprocessConfig"):
        load_model(saved["solo"], device="cpu", thresholds=YOLACTPostprocessConfig())
    with pytest.raises(ConfigError, match="thresholds are PostprocessConfig"):
        load_model(saved["yolact"], device="cpu", thresholds=PostprocessConfig())
