"""Fine-tuning of Tiny, and models of some of its classes."""

from dataclasses import replace

import pytest
import torch
from helpers.nested_tensors import random_maps
from helpers.training_runs import NUTS_AND_BOLTS, QUICK_FINE_TUNE, small_start, write_nuts_and_bolts

from solo_infer import SOLO
from solo_infer.config import Categories
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.segmenters.tiny import Tiny
from solo_infer.training import fine_tune, load_backbone_weights, replace_classifier
from solo_infer.training.initialization import keep_classes
from solo_infer.training.metrics_log import read_rows

CLASSIFIER = {f"head.class_out.{level}.{part}" for level in range(4) for part in ("weight", "bias")}


def test_only_the_classifier_is_initialized_for_other_classes(small_tiny):
    other = replace_classifier(small_tiny, Categories(("nut", "bolt")))
    assert type(other) is Tiny and other.config.architecture.num_classes == 2
    before, after = small_tiny.network.state_dict(), other.network.state_dict()
    assert {name for name in after if after[name].shape != before[name].shape} == CLASSIFIER
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - CLASSIFIER)
    for level in range(4):
        prior = after[f"head.class_out.{level}.bias"].sigmoid()
        assert prior.tolist() == pytest.approx([0.01, 0.01])


@torch.no_grad()
def test_kept_classes_have_the_same_scores(small_tiny):
    smaller = keep_classes(small_tiny, ["bird", "cat"])
    assert smaller.config.categories.names == ("bird", "cat")
    images = random_maps((3, 64, 96))
    output, expected = smaller.network(images), small_tiny.network(images)
    torch.testing.assert_close(output.cells.class_logits, expected.cells.class_logits[..., [2, 0]])
    assert torch.equal(output.cells.kernels, expected.cells.kernels)
    assert torch.equal(output.features, expected.features)


def test_fine_tuning_keeps_the_other_layers_as_start(small_tiny, tmp_path):
    data = write_nuts_and_bolts(tmp_path / "data")
    before = {name: tensor.clone() for name, tensor in small_tiny.network.state_dict().items()}
    recipe = replace(
        QUICK_FINE_TUNE,
        epochs=1,
        optimizer="adamw",
        lr=1e-3,
        backbone_lr_mult=0.0,
        lr_mults={"neck": 0.0, "head.class_out": 5.0},
    )
    run = fine_tune(small_tiny, data, tmp_path / "run", recipe, validation=data, device="cpu")
    trained = SOLO.from_pretrained(run, device="cpu")
    assert type(trained) is Tiny
    categories = trained.config.categories
    assert dict(zip(categories.names, categories.ids, strict=True)) == NUTS_AND_BOLTS
    assert trained.config.thresholds == small_tiny.config.thresholds
    after = trained.network.state_dict()
    assert {name for name in after if after[name].shape != before[name].shape} == CLASSIFIER
    for name in after.keys() - CLASSIFIER:
        frozen = name.startswith(("backbone.", "neck."))
        assert torch.equal(after[name], before[name]) or not frozen, name
    assert not torch.equal(after["mask_branch.out.weight"], before["mask_branch.out.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_tiny.network.state_dict().items())
    rows = read_rows(run / "training.csv")
    assert {"loss_cls", "loss_box", "loss_distance", "loss_mask"} <= rows[0].keys()
    assert all(float(row["loss"]) > 0 for row in rows)
    assert len(read_rows(run / "evaluation.csv")) == 1


def test_wrong_parts_in_the_recipe_are_refused(small_tiny, tmp_path):
    data = write_nuts_and_bolts(tmp_path / "data")
    recipe = replace(QUICK_FINE_TUNE, lr_mults={"mask_head": 0.5})
    with pytest.raises(ConfigError, match="lr_mults has 'mask_head', but no parameter has such a name"):
        fine_tune(small_tiny, data, tmp_path / "run", recipe, device="cpu")


def test_classifiers_with_other_names_are_refused(small_tiny, tmp_path):
    torch.save(small_start().network.backbone.state_dict(), tmp_path / "lite0.pth")
    network = replace_classifier(small_tiny, small_tiny.config.categories).network
    with pytest.raises(CheckpointError, match="does not fit the backbone shufflenet_1x: .* are missing"):
        load_backbone_weights(network, tmp_path / "lite0.pth")
