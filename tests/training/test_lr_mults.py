"""Multipliers of the learning rate for parts of a network, and parts that they freeze."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.models import small_tiny_config
from helpers.training_runs import QUICK, Rectangles

from solo_infer import load_model
from solo_infer.errors import ConfigError
from solo_infer.training import Recipe, fit, init_model
from solo_infer.training.initialization import prepare_for_training
from solo_infer.training.recipe import FINE_TUNE
from solo_infer.training.trainer import _make_optimizer

FROZEN = {
    "neck": 0.0,
    "head.class_tower": 0,
    "head.class_out": 0.0,
    "head.distance_out": 0.0,
}  # as in the first stage of examples/tiny.json, with a frozen backbone


@pytest.mark.parametrize(
    "mults",
    [
        1.0,
        None,
        [("neck", 1.0)],
        {"neck": -0.1},
        {"neck": float("nan")},
        {"neck": float("inf")},
        {"neck": "1"},
        {"neck": True},
        {"neck": None},
        {"": 1.0},
        {1: 1.0},
    ],
    ids=str,
)
def test_wrong_multipliers_are_rejected(mults):
    with pytest.raises(ConfigError, match=r"lr_mults=.*: expected \{start of parameter names: multiplier\}"):
        Recipe(lr_mults=mults)


def test_longest_start_counts():
    recipe = Recipe(
        backbone_lr_mult=0.25,
        lr_mults={
            "head": 2.0,
            "head.class_out": 5.0,
            "head.class_out.1": 7.0,
            "backbone.stages.2": 0.5,
            "nec": 9.0,
        },
    )
    expected = {
        "backbone.stem.weight": 0.25,
        "backbone.stages.2.0.expand.bias": 0.5,
        "backbone.stages.20.weight": 0.25,
        "neck.lateral.0.weight": 1.0,  # "nec" must match a whole part of it
        "head.class_tower.0.0.depthwise.weight": 2.0,
        "head.class_out.0.weight": 5.0,
        "head.class_out.1.weight": 7.0,
        "head.class_out.10.weight": 5.0,
        "head.class_outs.weight": 2.0,
        "header.weight": 1.0,
    }
    assert {name: recipe.lr_mult_of(name) for name in expected} == expected
    reverse = replace(recipe, lr_mults=dict(reversed(recipe.lr_mults.items())))
    assert {name: reverse.lr_mult_of(name) for name in expected} == expected


def test_lr_mults_take_precedence_over_that_of_the_backbone():
    recipe = Recipe(backbone_lr_mult=0.25, lr_mults={"backbone": 3.0, "neck.lateral.0.bias": 0.5})
    assert recipe.lr_mult_of("backbone.stem.weight") == 3.0
    assert recipe.lr_mult_of("neck.lateral.0.bias") == 0.5  # a whole name
    assert Recipe(backbone_lr_mult=0.25).lr_mult_of("backbone.stem.weight") == 0.25
    assert Recipe().lr_mult_of("backbone.stem.weight") == 1.0


def test_recipes_keep_their_multipliers():
    mults = {"neck": 0.3, "head.class_out": 5}
    recipe = Recipe(lr_mults=mults)
    mults["neck"] = 100.0
    assert recipe.lr_mults == {"neck": 0.3, "head.class_out": 5}
    assert Recipe.from_dict(json.loads(recipe.to_json())) == recipe
    assert recipe.resume_key().lr_mults == recipe.lr_mults
    assert recipe.resume_key() != Recipe().resume_key()
    assert Recipe.from_dict({"epochs": 3}).lr_mults == {}
    # Recipes may be keys of dictionaries, as before they had multipliers.
    assert {recipe: 1, FINE_TUNE: 2}[replace(recipe)] == 1


def tiny_network():
    return init_model(small_tiny_config(), seed=1).network


def test_multipliers_of_0_freeze():
    network = prepare_for_training(
        tiny_network(), Recipe(backbone_lr_mult=0.0, lr_mults={**FROZEN, "neck.lateral.1": 0.5})
    )
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    starts = ("head.kernel_tower.", "head.kernel_out.", "mask_branch.", "neck.lateral.1.")
    assert trained == {name for name, _ in network.named_parameters() if name.startswith(starts)}
    assert network.training


def test_all_parameters_train_again_after_another_recipe():
    network = prepare_for_training(tiny_network(), Recipe(lr_mults=FROZEN))
    prepare_for_training(network, Recipe(freeze_stem=False))
    assert all(parameter.requires_grad for parameter in network.parameters())
    prepare_for_training(network, Recipe(freeze_stem=True))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen and all(name.startswith(("backbone.stem.", "backbone.stages.0.")) for name in frozen)


@pytest.mark.parametrize("start", ["nek", "head.class", "neck.", "mask_head", "head.class_out.9"])
def test_unknown_starts_are_refused(start):
    with pytest.raises(ConfigError, match=f"lr_mults has '{start}', but no parameter .*'backbone.stem'"):
        prepare_for_training(tiny_network(), Recipe(lr_mults={"neck": 0.5, start: 0.5}))


def test_recipes_that_freeze_everything_are_refused():
    mults = {"neck": 0.0, "head": 0.0, "mask_branch": 0.0}
    with pytest.raises(ConfigError, match="freezes all parameters: expected a multiplier above 0"):
        prepare_for_training(tiny_network(), Recipe(backbone_lr_mult=0.0, lr_mults=mults))
    prepare_for_training(tiny_network(), Recipe(backbone_lr_mult=0.0, lr_mults={**mults, "head": 0.1}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_groups_of_the_optimizer(optimizer):
    recipe = Recipe(
        optimizer=optimizer,
        backbone_lr_mult=0.1,
        lr_mults={"neck": 0.3, "head.class_out": 0.1, "head.kernel_out": 0},
    )
    network = prepare_for_training(tiny_network(), recipe)
    parameters = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    made, names = _make_optimizer(parameters, recipe)
    name_of = {id(parameter): name for name, parameter in parameters}
    groups = {group["lr_mult"]: [name_of[id(p)] for p in group["params"]] for group in made.param_groups}
    assert set(groups) == {0.1, 0.3, 1.0}
    for mult, members in groups.items():
        assert members == [name for name, _ in parameters if recipe.lr_mult_of(name) == mult]
    assert names == [
        name for group in made.param_groups for name in (name_of[id(p)] for p in group["params"])
    ]
    assert sorted(names) == sorted(name_of.values())


def test_frozen_parts_do_not_change_in_a_run(tmp_path):
    model = init_model(small_tiny_config(), seed=1)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    recipe = replace(
        QUICK, epochs=1, optimizer="adamw", weight_decay=0.1, backbone_lr_mult=0.0, lr_mults=FROZEN
    )
    fit(model, Rectangles(2), tmp_path, recipe, device="cpu")
    starts = ("backbone.", *(f"{start}." for start in FROZEN))
    saved = load_model(tmp_path, device="cpu").network.state_dict()  # the moving average
    for name, parameter in model.network.named_parameters():
        frozen = name.startswith(starts)
        assert (parameter.grad is None) == frozen, name
        if frozen or name.endswith(".weight"):
            assert torch.equal(parameter, before[name]) == torch.equal(saved[name], before[name]) == frozen
    assert Recipe.from_dict(json.loads((tmp_path / "recipe.json").read_text())) == recipe
