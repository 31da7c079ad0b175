"""Recipes: schedules, checks of the settings, files of earlier versions."""

import json
from dataclasses import asdict, fields, replace

import pytest
from helpers.paths import EXAMPLES

from solo_infer import SOLO
from solo_infer.errors import ConfigError
from solo_infer.training.recipe import FINE_TUNE, PUBLISHED_1X, PUBLISHED_3X, RECIPES, Recipe

# A stage of examples/tiny.json as of version 0.1, before fields were renamed.
OLD_STAGE = """{
  "epochs": 28, "last_epoch": 9, "batch_size": 4, "optimizer": "adamw", "lr": 0.0005, "body_lr": 0.25,
  "weight_decay": 0.05, "schedule": "cosine", "warmup": 200, "clip": 10.0, "ema": 0.999, "seed": 1, "workers": 1,
  "augment": "jitter", "size": 256, "scales": [0.342857143, 1.142857143], "copy_paste": 0.3, "save_every": 300
}"""  # noqa: E501


def test_published_schedules():
    assert PUBLISHED_1X.lr_at(0, 1000) == pytest.approx(0.01 * 0.001)
    assert PUBLISHED_1X.lr_at(250, 1000) == pytest.approx(0.01 * 0.5005)
    rates = [PUBLISHED_1X.lr_at(epoch * 1000, 1000) for epoch in (1, 7, 8, 10, 11)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])
    rates = [PUBLISHED_3X.lr_at(epoch * 1000, 1000) for epoch in (26, 27, 33)]
    assert rates == pytest.approx([0.01, 1e-3, 1e-4])
    cosine = Recipe(schedule="cosine", epochs=10, warmup_iters=0)
    assert [cosine.lr_at(step, 10) for step in (0, 50, 100)] == pytest.approx([0.01, 0.005, 0.0])


@pytest.mark.parametrize(
    "setting",
    [
        {"optimizer": "adam"},
        {"schedule": "poly"},
        {"autocast": "float64"},
        {"augment": ["flip"]},
        {"epochs": 0},
        {"epochs": True},
        {"batch_size": 2.0},
        {"log_every": "1"},
        {"last_epoch": 1.0},
        {"workers": 2.5},
        {"workers": -1},
        {"crop_size": 256.0},
        {"warmup_iters": 0.5},
        {"seed": -1},
        {"seed": 1.5},
        {"lr": -1.0},
        {"lr": "0.1"},
        {"lr": True},
        {"weight_decay": float("nan")},
        {"grad_clip_norm": float("inf")},
        {"backbone_lr_mult": None},
        {"ema_decay": 1.0},
        {"ema_decay": -0.1},
        {"copy_paste": 1.5},
        {"freeze_stem": 1},
        {"milestones": 8},
        {"milestones": "8"},
        {"milestones": [8.5]},
        {"milestones": [-1]},
        {"scale_range": (1.0,)},
        {"scale_range": (2.0, 1.0)},
        {"scale_range": (0.0, 1.0)},
        {"scale_range": ("a", "b")},
        {"scale_range": 1.0},
    ],
    ids=str,
)
def test_wrong_settings_are_rejected(setting):
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name}=.*expected"):
        Recipe(**setting)


def test_lists_become_tuples():
    recipe = Recipe(milestones=[3, 4], scale_range=[1, 2])
    assert (recipe.milestones, recipe.scale_range) == ((3, 4), (1, 2))


@pytest.mark.parametrize("name", RECIPES)
def test_json_round_trip(name):
    assert Recipe.from_dict(json.loads(RECIPES[name].to_json())) == RECIPES[name]


def test_unknown_settings_get_suggestions():
    with pytest.raises(ConfigError, match="Unknown setting 'learning_rate'.*Expected: epochs, "):
        Recipe.from_dict({"learning_rate": 1})
    with pytest.raises(ConfigError, match="'warmup_iter'.*Did you mean 'warmup_iters'"):
        Recipe.from_dict({"warmup_iter": 1})


def test_recipes_of_earlier_versions_are_read():
    recipe = Recipe.from_dict(json.loads(OLD_STAGE))
    assert recipe == Recipe(
        epochs=28,
        last_epoch=9,
        batch_size=4,
        optimizer="adamw",
        lr=0.0005,
        backbone_lr_mult=0.25,
        weight_decay=0.05,
        schedule="cosine",
        warmup_iters=200,
        grad_clip_norm=10.0,
        ema_decay=0.999,
        seed=1,
        workers=1,
        augment="jitter",
        crop_size=256,
        scale_range=(0.342857143, 1.142857143),
        copy_paste=0.3,
        save_every=300,
    )
    assert "warmup_iters" in json.loads(recipe.to_json()) and "warmup" not in json.loads(recipe.to_json())
    with pytest.raises(ConfigError, match="'warmup_iters' twice"):
        Recipe.from_dict({"warmup": 1, "warmup_iters": 2})


def test_resume_key_ignores_settings_that_do_not_change_the_weights():
    faster = replace(FINE_TUNE, workers=7, log_every=3, save_every=5, evaluate_every=2)
    assert faster.resume_key() == FINE_TUNE.resume_key()
    ignored = {"workers", "log_every", "save_every", "evaluate_every"}
    values = asdict(replace(FINE_TUNE, milestones=(1, 2)))
    for name in {field.name for field in fields(Recipe)} - ignored:
        other = {**values, name: asdict(PUBLISHED_1X)[name]}
        if other[name] != asdict(FINE_TUNE)[name]:
            assert Recipe(**other).resume_key() != FINE_TUNE.resume_key(), name


def test_example_settings_are_those_of_the_embedded_model():
    settings = json.loads((EXAMPLES / "tiny.json").read_text())
    config = SOLO.from_pretrained("tiny", device="cpu").config.to_dict()
    for name, value in settings["preprocessing"].items():
        assert config["preprocessing"][name] == value, name
    recipes = [Recipe.from_dict(stage) for stage in settings["stages"]]
    assert all(recipe.augment == "jitter" for recipe in recipes)
