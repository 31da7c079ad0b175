"""The recipes for other libraries train models that load, and lower the losses; with the real packages."""

import csv
import importlib
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from helpers.documentation import read_blocks
from helpers.paths import EXAMPLES, ROOT
from helpers.training_runs import NUTS_AND_BOLTS, write_nuts_and_bolts
from helpers.training_sets import assert_consistent

from solo_infer import SOLO
from solo_infer.training import CocoDataset, DatasetBatches
from solo_infer.training.dataset import make_generator

EPOCHS = 10
TRAINERS = {
    "train_with_lightning": "lightning",
    "train_with_accelerate": "accelerate",
    "torchvision_transforms": "torchvision",
}


@pytest.fixture
def recipe(request, monkeypatch):
    """Import the recipe of a test, which is skipped where the package is absent."""
    package = TRAINERS[request.param]
    pytest.importorskip(package, reason=f"{package} is not installed (pip install {package})")
    monkeypatch.syspath_prepend(str(EXAMPLES / "recipes"))
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def nuts_and_bolts(tmp_path_factory):
    return write_nuts_and_bolts(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Write the embedded model for small images, and return its folder."""
    model = SOLO.from_pretrained("tiny", device="cpu").with_settings(input_size=96)
    return model.save_pretrained(tmp_path_factory.mktemp("start") / "model")


@torch.no_grad()
def loss_of(model, data):
    """Return the loss of a model on all images of a set, with the statistics of the trained BatchNorm."""
    dataset = CocoDataset(data.images, data.annotations)
    batches = DatasetBatches(dataset, len(dataset), model.config.preprocessing, workers=0)
    ((images, targets),) = batches.epoch(0, 0)
    network = model.network
    network.training = True  # only of the network itself, which selects losses as its outputs
    loss = sum(network(images, targets).values()).item()
    network.training = False
    return loss


@pytest.mark.parametrize("recipe", TRAINERS, indirect=True)
def test_recipe_trains_a_model_that_loads(recipe, nuts_and_bolts, start, tmp_path, capsys):
    output = tmp_path / "trained"
    recipe.main(nuts_and_bolts.images, nuts_and_bolts.annotations, output, EPOCHS, start)
    printed = capsys.readouterr().out
    assert f"Model: {output}" in printed
    if recipe.__name__ == "train_with_lightning":
        assert f"{EPOCHS} iterations" in printed  # the images fill one batch
    model = SOLO.from_pretrained(output, device="cpu")
    assert set(model.config.categories.names) == set(NUTS_AND_BOLTS)
    assert model.config.architecture == replace(
        SOLO.from_pretrained(start).config.architecture, num_classes=len(NUTS_AND_BOLTS)
    )
    if recipe.__name__ == "torchvision_transforms":  # few of its crops of three images hold whole objects
        with (output / "training.csv").open(encoding="utf-8") as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file)]
        assert len(losses) == EPOCHS and sum(losses[-3:]) < sum(losses[:3])
        return
    untrained = recipe.replace_classifier(SOLO.from_pretrained(start), model.config.categories)
    assert loss_of(model, nuts_and_bolts) < loss_of(untrained, nuts_and_bolts)


@pytest.mark.parametrize("recipe", ["torchvision_transforms"], indirect=True)
def test_transforms_change_image_and_masks_together(recipe, nuts_and_bolts):
    augment = recipe.TorchvisionAugmentation(recipe.make_transform(96))
    dataset = CocoDataset(nuts_and_bolts.images, nuts_and_bolts.annotations, augment=augment)
    plain = CocoDataset(nuts_and_bolts.images, nuts_and_bolts.annotations)
    state = torch.get_rng_state()
    for index in range(len(dataset)):
        first, again, other_epoch = dataset[0, index], dataset[0, index], dataset[1, index]
        assert_consistent(first)
        assert first.shape == (96, 96)
        assert torch.equal(first.image, again.image)
        assert torch.equal(first.target["masks"], again.target["masks"])
        assert not torch.equal(first.image, other_epoch.image)
        assert set(first.target["labels"].tolist()) <= set(plain[index].target["labels"].tolist())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("recipe", ["torchvision_transforms"], indirect=True)
def test_mirrored_sample_equals_the_mirrored_tensors(recipe, nuts_and_bolts):
    augment = recipe.TorchvisionAugmentation(recipe.v2.RandomHorizontalFlip(p=1.0))
    sample = CocoDataset(nuts_and_bolts.images, nuts_and_bolts.annotations).load(0)
    mirrored = augment(sample, make_generator(0), None)
    assert torch.equal(mirrored.image, sample.image.flip(-1))
    assert torch.equal(mirrored.target["masks"], sample.target["masks"].flip(-1))
    assert_consistent(mirrored)


def test_block_of_the_page_draws_with_supervision(tmp_path, monkeypatch):
    pytest.importorskip("supervision", reason="supervision is not installed (pip install supervision)")
    blocks = [block.text for block in read_blocks(ROOT / "docs" / "recipes.md")]
    (block,) = [text for text in blocks if "import supervision" in text]
    shutil.copy(EXAMPLES / "street.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(compile(block, "recipes.md", "exec"), scope)
    assert len(scope["detections"]) == len(scope["result"]) > 5
    changed = (scope["picture"] != scope["result"].image).any(axis=2).mean()
    assert 0.01 < changed < 0.5  # outlines and labels, not the whole picture
