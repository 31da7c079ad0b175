"""Collation, order and loading of batches."""

import numpy as np
import pytest
import torch
from helpers.models import small_config
from helpers.training_sets import bitmap, compressed, instance, rectangle, sample_of, write_set
from torch import distributed

from solo_infer.config import PreprocessConfig
from solo_infer.errors import ConfigError, DataError
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.models import build_network
from solo_infer.training.dataset import CocoDataset
from solo_infer.training.loader import DatasetBatches, EpochSampler, PackedTargets, collate
from solo_infer.training.transforms import Augmentation, ColorJitter, CopyPaste, Crop, Flip, ResizeChoice

PREPROCESSING = PreprocessConfig(short_side=48, long_side=64)


@pytest.fixture
def dataset(tmp_path):
    sizes = {f"{number}.png": (48, 64) if number % 2 else (64, 48) for number in range(9)}
    instances = [
        instance(name, category, rectangle(5 + number, 4, 30 + number, 40))
        for number, name in enumerate(sizes)
        for category in ("cat", "dog")
    ]
    instances.append(instance("3.png", "cat", compressed(bitmap(48, 64, 0, 40, 64, 48)), iscrowd=1))
    records = {"5.png": {"labelled_category_ids": [2]}}
    files = write_set(tmp_path, sizes, {"cat": 1, "dog": 2, "bird": 3}, instances, records=records)
    steps = (Crop(), ResizeChoice((27, 40, 56), 80), Flip(), ColorJitter())
    return CocoDataset(*files, augment=Augmentation(steps, CopyPaste()), seed=2)


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for (images, targets), (other_images, other_targets) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert_equal_targets(targets, other_targets)


def assert_equal_targets(first, second):
    for target, other in zip(first, second, strict=True):
        assert target.keys() == other.keys()
        for key, tensor in target.items():
            assert tensor.dtype == other[key].dtype and torch.equal(tensor, other[key])


class TestCollate:
    def test_normalizes_and_pads_like_prediction(self, photo):
        preprocessing = PreprocessConfig(short_side=300, long_side=451, size_divisor=32)
        assert preprocessing.resized_shape(*photo.shape[:2]) == photo.shape[:2] == (300, 451)
        sample = sample_of([np.ones((300, 451), bool)])._replace(
            image=torch.from_numpy(photo).permute(2, 0, 1)
        )
        images, _ = collate([sample], preprocessing)
        geometry = plan(photo, preprocessing)
        (expected,) = prepare([photo], [geometry], preprocessing, torch.device("cpu"))
        assert images.shape == (1, 3, 320, 480) and images.dtype == torch.float32
        assert torch.equal(images[0], expected)

    def test_batch_has_the_size_of_its_largest_images(self):
        samples = [sample_of([bitmap(*shape, 1, 2, 9, 9)]) for shape in ((40, 60), (70, 20))]
        images, targets = collate(samples, PreprocessConfig(size_divisor=16))
        assert images.shape == (2, 3, 80, 64)
        assert not images[0, :, 40:].any() and not images[0, :, :, 60:].any() and images[1, :, 69, 19].all()
        assert [tuple(target["masks"].shape) for target in targets] == [(1, 40, 60), (1, 70, 20)]
        assert all(type(tensor) is torch.Tensor for target in targets for tensor in target.values())

    def test_fixed_size(self):
        samples = [sample_of([bitmap(40, 60, 1, 2, 9, 9)])]
        assert collate(samples, PreprocessConfig(), size=(64, 100))[0].shape == (1, 3, 64, 100)
        with pytest.raises(ConfigError, match="40 x 60 .* 64 x 50"):
            collate(samples, PreprocessConfig(), size=(64, 50))


class TestPackedTargets:
    @pytest.fixture
    def targets(self):
        samples = [
            sample_of([bitmap(7, 9, 1, 2, 5, 6), bitmap(7, 9, 0, 0, 3, 3)], labelled=torch.tensor([0, 1])),
            sample_of(np.zeros((0, 5, 3), bool)),
            sample_of([bitmap(5, 3, 0, 0, 3, 3)], labels=[4]),
        ]
        return collate(samples, PREPROCESSING)[1]

    def test_unpack_reverses_pack(self, targets):
        packed = PackedTargets.pack(targets)
        assert packed.buffer.dtype == torch.uint8 and packed.buffer.ndim == 1
        assert_equal_targets(packed.unpack(), targets)

    def test_pinned_targets_are_equal(self, targets, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # pinning requires CUDA
        packed = PackedTargets.pack(targets)
        pinned = packed.pin_memory()
        assert pinned.buffer.data_ptr() != packed.buffer.data_ptr()
        assert_equal_targets(pinned.unpack(), targets)


class TestSampler:
    def test_epoch_has_each_image_at_most_once(self):
        batches = list(EpochSampler(23, 5))
        indices = [index for batch in batches for _, index in batch]
        assert len(batches) == len(EpochSampler(23, 5)) == 4
        assert {len(batch) for batch in batches} == {5}
        assert len(set(indices)) == 20 and set(indices) <= set(range(23))

    def test_order_depends_on_seed_and_epoch(self):
        sampler = EpochSampler(50, 5, seed=3)
        orders = []
        for epoch in (0, 1, 2):
            sampler.set_epoch(epoch)
            orders.append([index for batch in sampler for _, index in batch])
            assert {number for batch in sampler for number, _ in batch} == {epoch}
        assert orders[0] != orders[1] != orders[2]
        assert orders[0] == [index for batch in EpochSampler(50, 5, seed=3) for _, index in batch]
        assert orders[0] != [index for batch in EpochSampler(50, 5, seed=4) for _, index in batch]

    def test_resumed_epoch_yields_the_remaining_batches(self):
        sampler = EpochSampler(50, 5)
        sampler.set_epoch(4)
        batches = list(sampler)
        sampler.set_epoch(4, 7)
        assert list(sampler) == batches[7:] and len(sampler) == 10
        sampler.set_epoch(4)
        assert list(sampler) == batches

    @pytest.mark.parametrize("world_size", [2, 3, 6])
    @pytest.mark.parametrize("portrait", [None, np.arange(50) % 3 == 0])
    def test_shares_of_all_processes_are_the_batches_of_one(self, world_size, portrait):
        expected = list(EpochSampler(50, 6, 1, portrait=portrait))
        samplers = [EpochSampler(50, 6, 1, rank, world_size, portrait) for rank in range(world_size)]
        assert [sum(shares, []) for shares in zip(*samplers, strict=True)] == expected
        assert {len(batch) for batch in samplers[0]} == {6 // world_size}

    def test_only_the_last_batch_mixes_orientations(self):
        portrait = np.arange(60) % 3 == 0  # 20 and 40: 2 and 5 batches of 8, and no mixed one
        sampler = EpochSampler(60, 8, portrait=portrait)
        for epoch in range(5):
            sampler.set_epoch(epoch)
            orientations = [{bool(portrait[index]) for _, index in batch} for batch in sampler]
            assert len(orientations) == len(sampler) == 7
            assert all(len(orientation) == 1 for orientation in orientations)
        first_orientations = set()
        for epoch in range(10):
            sampler.set_epoch(epoch)
            first_orientations.add(bool(portrait[next(iter(sampler))[0][1]]))
        assert first_orientations == {True, False}
        batches = list(EpochSampler(7, 3, portrait=np.array([True] * 2 + [False] * 5)))
        assert len(batches) == 2 and {index < 2 for _, index in batches[0]} == {False}

    @pytest.mark.parametrize(
        "arguments",
        [(10, 11), (10, 0), (10, 4, 0, 0, 3), (10, 4, 0, 2, 2), (10, 4, -1), (10, 4, 0, 0, 1, [1])],
    )
    def test_wrong_arguments_are_rejected(self, arguments):
        with pytest.raises(ConfigError):
            EpochSampler(*arguments)


class TestDatasetBatches:
    def test_batches_follow_the_sampler(self, dataset):
        batches = DatasetBatches(dataset, 2, PREPROCESSING, seed=7, workers=0)
        sampler = EpochSampler(9, 2, 7)
        sampler.set_epoch(3)
        expected = [collate([dataset[key] for key in keys], PREPROCESSING) for keys in sampler]
        assert len(batches) == 4
        assert_equal_batches(list(batches.epoch(3, 0)), expected)

    def test_batches_do_not_depend_on_workers_or_resumption(self, dataset):
        single = DatasetBatches(dataset, 3, PREPROCESSING, workers=0, by_orientation=True)
        multi = DatasetBatches(dataset, 3, PREPROCESSING, workers=2, by_orientation=True)
        before = torch.random.get_rng_state()
        expected = list(single.epoch(1, 0))
        assert_equal_batches(list(multi.epoch(1, 1)), expected[1:])
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not torch.equal(expected[0][0], next(single.epoch(2, 0))[0])

    def test_processes_share_batches(self, dataset, monkeypatch):
        expected = list(DatasetBatches(dataset, 4, PREPROCESSING, workers=0, size=(96, 96)).epoch(0, 0))
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
        shares = []
        for rank in (0, 1):
            monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
            batches = DatasetBatches(dataset, 4, PREPROCESSING, workers=0, size=(96, 96))
            assert len(batches) == 2
            shares.append(list(batches.epoch(0, 0)))
        merged = [
            (torch.cat([images, other_images]), targets + other_targets)
            for (images, targets), (other_images, other_targets) in zip(*shares, strict=True)
        ]
        assert_equal_batches(merged, expected)

    def test_network_can_be_trained_on_them(self, dataset):
        network = build_network(small_config("decoupled_light").architecture).train()
        images, targets = collate([dataset[3], dataset[5]], PREPROCESSING)
        assert ["labelled" in target for target in targets] == [False, True]
        assert targets[0]["iscrowd"].any()
        losses = network(images, targets)
        assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())

    def test_errors_name_the_image(self, dataset, tmp_path):
        (tmp_path / "3.png").write_bytes(b"not an image")
        with pytest.raises(DataError, match="3.png"):
            list(DatasetBatches(dataset, 9, PREPROCESSING, workers=0).epoch(0, 0))

    def test_batch_larger_than_the_data_set_is_rejected(self, dataset):
        with pytest.raises(ConfigError, match=r"10 from 9 images.*1\.\.9"):
            DatasetBatches(dataset, 10, PREPROCESSING)

    def test_images_without_instances(self, tmp_path):
        instances = [instance("0.png", "nut", rectangle(5, 5, 30, 30), bbox=[5, 5, 25, 25], area=625)]
        files = write_set(tmp_path, {"0.png": (40, 60), "1.png": (40, 60)}, {"nut": 1}, instances)
        dataset = CocoDataset(*files, filter_empty=False)
        ((_, targets),) = DatasetBatches(dataset, 2, PreprocessConfig(), workers=0).epoch(0, 0)
        assert sorted(len(target["labels"]) for target in targets) == [0, 1]
        assert all(target["labels"].dtype == torch.int64 for target in targets)
