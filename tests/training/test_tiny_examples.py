"""The examples that make and train the embedded model."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import small_tiny_config
from helpers.nested_tensors import assert_close_outputs, random_maps
from helpers.paths import EXAMPLES
from helpers.training_sets import instance, rectangle, write_set

from solo_infer import SOLO, PreprocessConfig
from solo_infer.config import COCO, TinyConfig, find_preset
from solo_infer.training import Recipe, init_model
from solo_infer.training.metrics_log import read_rows

TRAINER = runpy.run_path(str(EXAMPLES / "train_tiny.py"))
CONVERTER = runpy.run_path(str(EXAMPLES / "nanodet_to_tiny.py"))

# From names of Tiny to those of the arrays, in order.
ARRAY_NAMES = (
    (r"^(backbone\.stages\.\d\.\d+)\.(expand|depthwise|pointwise)\.", r"\1.right_\2."),
    (r"^backbone\.stages\.(\d)\.", lambda match: f"body.stage{int(match[1]) + 2}."),
    (r"^backbone\.stem\.", "body.stem."),
    (r"^head\.distance_out\.", "extent_out."),
    (r"^head\.", ""),
    (r"^mask_branch\.from_pyramid\.", "mask.from_p."),
    (r"^mask_branch\.(coarse|fine)1\.", r"mask.\1."),
    (r"^mask_branch\.", "mask."),
)


def arrays_of(network):
    """Return the arrays of a network under the names of NanoDet-Plus."""
    arrays = {}
    for name, tensor in network.state_dict().items():
        for pattern, replacement in ARRAY_NAMES:
            name = re.sub(pattern, replacement, name)
        arrays[name] = tensor.numpy()
    assert len(arrays) == len(network.state_dict())
    return arrays


def converted(arrays, folder):
    np.savez(folder / "weights.npz", **arrays)
    CONVERTER["main"](folder / "weights.npz", folder / "start")
    return SOLO.from_pretrained(folder / "start", device="cpu")


def source(**changes):
    """Return a network like NanoDet-Plus's, which reads BGR, and its mask branch."""
    config = find_preset("tiny")
    config = replace(config, architecture=replace(config.architecture, **changes))
    return init_model(config, seed=3).network


@torch.no_grad()
def test_converted_network_equals_the_source_with_bgr_input(tmp_path, capsys):
    network = source()
    model = converted(arrays_of(network), tmp_path)
    assert capsys.readouterr().out.strip() == str(tmp_path / "start")
    assert model.config == find_preset("tiny")
    images = random_maps((3, 64, 96))
    expected = network(images.flip(1).contiguous(memory_format=torch.channels_last))
    assert_close_outputs(model.network(images), expected, 1e-5)


@torch.no_grad()
def test_missing_branches_start_anew(tmp_path):
    network = source()
    arrays = arrays_of(network)
    kept = {name: array for name, array in arrays.items() if not name.startswith(("kernel_", "mask."))}
    assert {"body.stage2.0.left_depthwise.weight", "extent_out.3.bias", "neck.lateral.0.bias"} <= kept.keys()
    model = converted(kept, tmp_path)
    head = model.network.head
    for name, tensor in head.class_tower.state_dict().items():
        assert torch.equal(head.kernel_tower.state_dict()[name], tensor), name
        assert torch.equal(network.head.class_tower.state_dict()[name], tensor), name
    assert not torch.equal(model.network.mask_branch.out.weight, network.mask_branch.out.weight)


def test_smaller_networks_are_recognized(tmp_path):
    network = source(backbone="shufflenet_1x", pyramid_channels=96)
    architecture = converted(arrays_of(network), tmp_path).config.architecture
    assert architecture == TinyConfig(backbone="shufflenet_1x", pyramid_channels=96, mask_context_blocks=3)


def test_unknown_arrays_are_refused(tmp_path):
    arrays = {**arrays_of(source()), "aux_head.weight": np.zeros(3, np.float32)}
    with pytest.raises(SystemExit, match=r"weights.npz has unknown arrays, first \['aux_head.weight'\]"):
        converted(arrays, tmp_path)


# --- Training


def small_network(seed=1):
    return init_model(small_tiny_config(), seed=seed).network


@torch.no_grad()
def test_teacher_loss_of_equal_networks_is_0():
    cells = small_network().raw_outputs(random_maps((3, 64, 96), count=2)).cells
    loss, generator = TRAINER["teacher_loss"], torch.Generator().manual_seed(0)
    for logit in (-20.0, -1.0, 2.0):  # far below, and above the score from which boxes count
        logits = logit + torch.randn(cells.class_logits.shape, generator=generator)
        expected = cells._replace(class_logits=logits)
        assert loss(expected, expected).item() == pytest.approx(0.0, abs=1e-6)
        assert (loss(expected._replace(class_logits=logits + 1), expected).item() > 0.01) == (logit > -20)
        moved = expected._replace(distance_logits=cells.distance_logits + logits.mean(dim=-1, keepdim=True))
        assert loss(moved, expected).item() == pytest.approx(0.0, abs=1e-5)  # of equal probabilities
        noise = torch.randn(cells.distance_logits.shape, generator=generator)
        other = expected._replace(distance_logits=cells.distance_logits + noise)
        assert (loss(other, expected).item() > 0.01) == (logit > -20)


def test_distilled_network_learns_its_teacher():
    teacher = small_network().requires_grad_(False)
    network = TRAINER["DistilledNetwork"](small_network(), teacher)
    assert network.state_dict().keys() == teacher.state_dict().keys()
    assert all(
        torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in network.state_dict().items()
    )
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[0, 8:40, 8:60] = True
    target = {"boxes": torch.tensor([[8.0, 8, 60, 40]]), "labels": torch.tensor([1]), "masks": masks}
    images = random_maps((3, 64, 96))
    losses = network.train()(images, [target])
    assert tuple(losses) == network.losses
    assert losses["loss_teacher"].item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for module in network.head.class_out:
            module.bias.add_(1.0)
    loss = network(images, [target])["loss_teacher"]
    assert loss.item() > 0.01
    loss.backward()
    assert network.head.class_out[0].bias.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    with torch.no_grad():
        assert_close_outputs(network.eval()(images).features, teacher(images).features, 1e-5)


def test_context_blocks_are_added_to_a_start_without_them():
    model = init_model(small_tiny_config(), seed=1)
    config = replace(model.config, architecture=replace(model.config.architecture, mask_context_blocks=0))
    start = init_model(config, seed=1)
    extended = TRAINER["with_context_blocks"](start)
    assert extended.config.architecture == replace(config.architecture, mask_context_blocks=3)
    images = random_maps((3, 64, 96))
    with torch.no_grad():
        assert torch.equal(extended.network(images).features, start.network(images).features)
    again = TRAINER["with_context_blocks"](extended)
    assert again.config == extended.config
    for name, tensor in extended.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name


@pytest.fixture
def sets(tmp_path):
    """Write two training sets and a validation set, and return their file."""
    folders = {}
    for name, categories in (
        ("all", {"person": 1, "cat": 17}),
        ("road", {"person": 1}),
        ("val", {"person": 1}),
    ):
        sizes = {f"{name}{number}.png": (60, 80) for number in range(4)}
        if name == "val":
            sizes |= {"all0.png": (60, 80)}
        instances = [
            instance(file_name, category, rectangle(10, 10, 60, 50), bbox=[10, 10, 50, 40], area=2000)
            for file_name in sizes
            for category in categories
        ]
        folders[name] = list(
            map(str, write_set(tmp_path / "images", sizes, categories, instances, f"{name}.json"))
        )
    content = {"train": [[*folders["all"], 1.0], [*folders["road"], 0.5]], "validation": [folders["val"]]}
    (tmp_path / "sets.json").write_text(json.dumps(content))
    return tmp_path / "sets.json"


def test_sets_are_read(sets):
    datasets, excluded = TRAINER["read_sets"](sets)
    assert [len(dataset.file_names) for dataset in datasets] == [4, 4]
    assert excluded == {"all0.png", *(f"val{number}.png" for number in range(4)), "road1.png", "road3.png"}


def test_example_trains_a_model(sets, tmp_path, capsys):
    config = small_tiny_config()
    architecture = replace(config.architecture, num_classes=80, mask_context_blocks=3)
    start = init_model(replace(config, architecture=architecture, categories=COCO), seed=1)
    start.save_pretrained(tmp_path / "start")
    settings = json.loads((EXAMPLES / "tiny.json").read_text())
    settings["preprocessing"] |= {"short_side": 64, "long_side": 64}
    for stage in settings["stages"]:
        stage |= {"epochs": 1, "batch_size": 2, "crop_size": 64, "workers": 0, "warmup_iters": 1}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    TRAINER["main"](tmp_path / "start", sets, tmp_path / "run", tmp_path / "settings.json")
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "run" / f"stage{len(settings['stages'])}"
    first, last = (SOLO.from_pretrained(path, device="cpu") for path in (tmp_path / "run" / "stage1", folder))
    assert last.config.categories == COCO
    assert last.config.preprocessing == PreprocessConfig(**settings["preprocessing"])
    before, between, after = (
        {name: parameter for name, parameter in model.network.named_parameters()}
        for model in (start, first, last)
    )
    for name, parameter in between.items():
        trained = name.startswith(("head.kernel_", "mask_branch."))
        if name.endswith(".weight") or not trained:
            assert torch.equal(parameter, before[name]) != trained, name
    assert not torch.equal(after["neck.lateral.0.weight"], between["neck.lateral.0.weight"])
    assert "loss_teacher" not in read_rows(tmp_path / "run" / "stage1" / "training.csv")[0]
    assert float(read_rows(folder / "training.csv")[0]["loss_teacher"]) == pytest.approx(0.0, abs=1e-4)


def test_stages_of_the_example_fit_the_network():
    network = init_model(small_tiny_config()).network
    names = [name for name, _ in network.named_parameters()]
    for stage in json.loads((EXAMPLES / "tiny.json").read_text())["stages"]:
        for start in Recipe.from_dict(stage).lr_mults:
            assert any(name.startswith(f"{start}.") for name in names), start
