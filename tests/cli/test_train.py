"""``solo-infer train``."""

import json
import logging
from dataclasses import replace

import pytest
from helpers.command_line import assert_clear
from helpers.models import small_config
from helpers.training_sets import instance, rectangle, write_set
from helpers.yolo_sets import write_nuts_and_bolts

from solo_infer import SOLO
from solo_infer.cli.main import build_parser
from solo_infer.cli.train import RECIPE_SETTINGS, recipe_from_options
from solo_infer.errors import ConfigError
from solo_infer.training import RECIPES, CocoFiles, init_model

pytest_plugins = ["helpers.command_line_fixtures"]
pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    instances = [
        instance(name, kind, rectangle(left, 20, right, 70), bbox=[left, 20, right - left, 50], area=2000)
        for name, left in (("0.png", 10), ("1.png", 30), ("2.png", 50))
        for kind, right in (("nut", left + 60), ("bolt", left + 30))
    ]
    sizes = {f"{number}.png": (90, 120) for number in range(4)}
    return CocoFiles(*write_set(tmp_path_factory.mktemp("data"), sizes, {"nut": 7, "bolt": 3}, instances))


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    """Return the path of a small model with fresh weights."""
    config = small_config("decoupled_light")
    architecture = replace(config.architecture, backbone="efficientnet_lite0", stacked_convs=1)
    model = init_model(replace(config, architecture=architecture))
    return model.save_pretrained(tmp_path_factory.mktemp("initial") / "model")


def files(data, output):
    return ("--images", data.images, "--annotations", data.annotations, "--output", output)


def test_yolo_format(run, initial, tmp_path):
    path = write_nuts_and_bolts(tmp_path / "data")
    code, _, err = run("train", "--model", initial, "--yolo", path, "--output", tmp_path / "run", *QUICK)
    assert code == 0 and "evaluation after" in err
    assert SOLO.from_pretrained(tmp_path / "run").config.categories.names == ("nut", "bolt")


def test_yolo_format_without_validation_data(run, initial, tmp_path):
    path = write_nuts_and_bolts(tmp_path / "data", "train: images/train\nnames: [nut, bolt]\n")
    code, _, err = run("train", "--model", initial, "--yolo", path, "--output", tmp_path / "run", *QUICK)
    assert code == 0 and "evaluation after" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--yolo", "data.yaml", "--images", "photos"], "--yolo names images, labels and validation data"),
        (["--yolo", "data.yaml", "--val-annotations", "a"], "--yolo names images, labels"),
        (["--images", "photos"], "pass --images and --annotations of a COCO data set, or --yolo"),
        ([], "pass --images and --annotations of a COCO data set, or --yolo"),
    ],
)
def test_options_of_the_data_set(run, options, message, tmp_path):
    code, out, err = run("train", "--model", "x", "--output", tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert_clear(err, message)


QUICK = ("--epochs", 1, "--batch-size", 2, "--workers", 0, "--crop-size", 96, "--device", "cpu")


def test_training(run, data, initial, tmp_path):
    options = (*QUICK, "--val-annotations", data.annotations)
    code, out, err = run("train", "--model", initial, *files(data, tmp_path / "a"), *options)
    assert (code, out) == (0, f"{tmp_path / 'a'}\n")
    assert "loss_mask" in err and "evaluation after" in err
    recipe = json.loads((tmp_path / "a" / "recipe.json").read_text())
    assert recipe[RECIPE_SETTINGS["crop_size"]] == 96
    # From scratch, with the recipe of the first run.
    again = ("--config", initial / "config.json", "--recipe", tmp_path / "a" / "recipe.json")
    again += ("--scale", 64, 96, *options)
    code, _, err = run("train", *again, *files(data, tmp_path / "b"))
    assert code == 0, err
    assert SOLO.from_pretrained(tmp_path / "b").config.preprocessing.long_side == 96


def test_quiet_training(run, data, initial, tmp_path):
    level = logging.getLogger("solo_infer.training").level
    output = tmp_path / "run"
    assert run("train", "--model", initial, *files(data, output), *QUICK, "--quiet") == (0, f"{output}\n", "")
    assert logging.getLogger("solo_infer.training").level == level


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model", "x", "--config", "y"], 2, "pass either --model, or --config"),
        ([], 2, "pass either --model, or --config"),
        (["--model", "x", "--backbone-weights", "y"], 2, "--backbone-weights requires --config"),
        (["--model", "x", "--val-images", "y"], 2, "--val-images requires --val-annotations"),
        (["--model", "x", "--recipe", "2x"], 1, "Expected finetune, 1x, 3x"),
        (["--model", "x", "--recipe", "yolct"], 1, "Did you mean 'yolact'"),
        (["--model", "nowhere"], 1, "No model 'nowhere'"),
        (["--model", "x", "--epochs", 10**30], 2, "expected an integer of at least 1 and at most 19 digits"),
        (
            ["--model", "x", "--epochs", 10**15],
            1,
            "epochs=1000000000000000: expected an integer in 1..1000000",
        ),
        (["--model", "x", "--epochs", "9" * 5000], 2, "--epochs: expected an integer"),
        (["--model", "x", "--seed", 2**63], 1, "expected an integer in 0..9223372036854775807"),
        (["--model", "x", "--workers", 5000], 1, "workers=5000: expected an integer in 0..256"),
        (["--model", "x", "--batch-size", 10**9], 1, "expected an integer in 1..65536"),
        (["--model", "x", "--crop-size", 10**8], 1, "crop_size=100000000: expected an integer in 0..32768"),
        (
            ["--model", "x", "--scale", 10**8, 10**8],
            1,
            "short_side=100000000: expected an integer in 1..32768",
        ),
        (["--model", "x", "--lr", "nan"], 1, "lr=nan: expected a number"),
        (["--model", "x", "--lr", "1e400"], 1, "lr=inf: expected a number"),
        (["--model", "x", "--recipe", "r" * 100_000], 1, "No recipe"),
    ],
)
def test_errors(run, options, code, message, data, tmp_path):
    exit_code, out, err = run("train", *options, *files(data, tmp_path / "out"))
    assert (exit_code, out) == (code, "")
    assert_clear(err, message)
    assert len(err) < 4000 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b"\xff\xfe{",
        b'{"epochs": ' + b"9" * 5000 + b"}",
        b"[1]",
        b'"x"',
    ],
    ids=["nested", "encoding", "integer", "list", "text"],
)
def test_files_that_are_no_recipe(run, data, tmp_path, content):
    (tmp_path / "recipe.json").write_bytes(content)
    options = ("--model", "x", "--recipe", tmp_path / "recipe.json")
    code, out, err = run("train", *options, *files(data, tmp_path / "out"))
    assert (code, out) == (1, "")
    assert_clear(err, "recipe")
    assert len(err) < 1500


def test_output_folder_of_another_run(run, data, initial, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    code, _, err = run("train", "--model", initial, *files(data, tmp_path))
    assert code == 1
    assert_clear(err, "not an empty directory")


def test_seed_of_the_recipe_seeds_new_weights(run, data, initial, tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr("solo_infer.training.init_model", lambda config, seed: seeds.append(seed))
    monkeypatch.setattr("solo_infer.training.fine_tune", lambda *args, **options: None)
    path = tmp_path / "recipe.json"
    path.write_text(replace(RECIPES["finetune"], seed=5).to_json())
    command = ("train", "--config", initial / "config.json", "--recipe", path, *files(data, tmp_path / "out"))
    assert run(*command)[0] == run(*command, "--seed", 7)[0] == 0
    assert seeds == [5, 7]


def recipe_of(*options):
    files = ["--model", "tiny", "--images", "i", "--annotations", "a", "--output", "o"]
    return recipe_from_options(build_parser().parse_args(["train", *files, *map(str, options)]))


def test_recipe_without_options():
    assert recipe_of("--recipe", "3x") == RECIPES["3x"]
    assert recipe_of() == RECIPES["finetune"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_recipe_files_may_have_a_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "recipe.json"
    path.write_bytes(RECIPES["1x"].to_json().encode(encoding))
    assert recipe_of("--recipe", path) == RECIPES["1x"]


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\0"])
def test_recipe_files_that_are_no_json_are_refused(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ConfigError, match="No recipe .*recipe.json"):
        recipe_of("--recipe", tmp_path / "recipe.json")


def test_milestones_scale_with_the_epochs():
    recipe = recipe_of("--recipe", "1x", "--epochs", 24)
    assert (recipe.epochs, recipe.milestones) == (24, (16, 22))


def test_learning_rate_of_sgd_scales_with_the_batch_size(capsys):
    assert recipe_of("--recipe", "1x", "--batch-size", 4).lr == pytest.approx(0.01 / 4)
    assert "learning rate 0.0025 for a batch size of 4" in capsys.readouterr().err
    assert recipe_of("--recipe", "1x", "--batch-size", 4, "--lr", 0.02).lr == 0.02
    assert recipe_of("--batch-size", 4).lr == RECIPES["finetune"].lr


def test_dtype_is_the_autocast_dtype():
    assert recipe_of("--dtype", "bfloat16").autocast == "bfloat16"
