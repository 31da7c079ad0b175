"""Hostile recipes and options of the command line: a valid recipe or a clear error, at once."""

import json
import math

import pytest
from helpers.fuzzing import ODD_TEXTS, TEXTS, campaign, mutate_bytes, mutate_json, only_typed_errors

from solo_infer.cli.main import build_parser
from solo_infer.cli.train import RECIPE_SETTINGS, _read_recipe, recipe_from_options
from solo_infer.config import PreprocessConfig
from solo_infer.training.recipe import RECIPES, Recipe
from solo_infer.training.transforms import make_augmentation

FILES = ["train", "--model", "tiny", "--images", "i", "--annotations", "a", "--output", "o"]
NUMBERS = (
    "0",
    "1",
    "-1",
    "1e3",
    "2.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "10" * 15,
    "9" * 5000,
    "0x10",
    "٣",
    "½",
)


def check(recipe):
    """Check that a recipe can be used: saved, scheduled and turned into an augmentation."""
    assert Recipe.from_dict(json.loads(recipe.to_json())) == recipe
    rates = [recipe.lr_at(iteration, 7) for iteration in (0, 1, 100, 7 * recipe.epochs - 1)]
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates), rates
    make_augmentation(recipe, PreprocessConfig())


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["finetune", "3x"])
def test_recipes(name):
    content = json.loads(RECIPES[name].to_json())
    valid = 0
    for rng in campaign(seed=f"recipe {name}"):
        value = mutate_json(content, rng)
        with only_typed_errors(rng) as outcome:
            check(Recipe.from_dict(value))
        valid += outcome.error is None
    assert valid


@pytest.mark.fuzz
def test_recipe_files(tmp_path):
    path = tmp_path / "recipe.json"
    content = RECIPES["1x"].to_json().encode()
    path.touch()
    for rng in campaign(seed="recipe file"):
        path.write_bytes(mutate_bytes(content, rng))
        with only_typed_errors(rng, watched=tmp_path):
            check(Recipe.from_dict(_read_recipe(str(path), RECIPES)))


@pytest.mark.fuzz
def test_options(capsys):
    parser = build_parser()
    options = ["--" + name.replace("_", "-") for name in RECIPE_SETTINGS]
    for rng in campaign(seed="options"):
        texts = rng.choice((NUMBERS, NUMBERS, TEXTS, ODD_TEXTS))
        chosen = rng.sample(options, rng.choice((1, 1, 2, 4)))
        pairs = [f"{option}={rng.choice(texts)}" for option in chosen]
        with only_typed_errors(rng):
            try:
                check(recipe_from_options(parser.parse_args([*FILES, "--recipe", "1x", *pairs])))
            except SystemExit as stop:
                assert stop.code == 2, rng.name
        capsys.readouterr()
