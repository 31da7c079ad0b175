"""Samples of a data set: images, masks, augmentation, caching, reduction."""

import pickle

import numpy as np
import pytest
import torch
from helpers.training_sets import (
    ANIMALS,
    bitmap,
    change_json,
    compressed,
    instance,
    pixels_of,
    rectangle,
    uncompressed,
    write_animals,
    write_set,
)
from PIL import Image
from torchvision import tv_tensors

from solo_infer.errors import ConfigError, DataError
from solo_infer.training.dataset import CocoDataset, make_generator, read_pixels

EXIF_ORIENTATION = 0x0112
ROTATED = 6  # the image is stored rotated by 90 degrees


@pytest.fixture
def files(tmp_path):
    return write_animals(tmp_path)


def write_rotated(path, height, width):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED
    Image.fromarray(pixels_of("rotated", height, width)).save(path, exif=exif)
    return str(path)


def test_sample_of_an_image(files):
    dataset = CocoDataset(*files)
    assert dataset.classes == ("cat", "dog")  # in the order of their ids
    assert (dataset.categories.names, dataset.categories.ids) == (("cat", "dog"), (3, 7))
    assert len(dataset) == 2
    image, target = dataset[0]
    assert isinstance(image, tv_tensors.Image) and isinstance(target["masks"], tv_tensors.Mask)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels_of("a.png", 40, 60))
    assert target["labels"].tolist() == [1, 0] and target["labels"].dtype == torch.int64
    assert target["boxes"].tolist() == [[10, 5, 30, 25], [40, 8, 55, 38]]
    assert target["boxes"].dtype == torch.float32
    assert target["masks"].dtype == torch.bool
    expected = [bitmap(40, 60, 10, 5, 30, 25), bitmap(40, 60, 40, 8, 55, 38)]
    assert np.array_equal(target["masks"].numpy(), expected)
    assert target["iscrowd"].tolist() == [False, False]
    assert "labelled" not in target
    assert dataset.shapes.tolist() == [[40, 60], [30, 20]]


def test_paths_may_be_strings(files):
    assert len(CocoDataset(*map(str, files))) == 2


def test_masks_may_be_polygons_or_rle(tmp_path):
    mask = bitmap(40, 60, 7, 11, 33, 29)
    mask[15:20, 12:18] = False
    files = write_set(
        tmp_path,
        {"a.png": (40, 60)},
        ANIMALS,
        [
            instance("a.png", "dog", uncompressed(mask), iscrowd=1),
            instance("a.png", "dog", compressed(mask)),
            instance("a.png", "cat", rectangle(0, 0, 5, 40) + rectangle(50, 10, 60, 20)),
        ],
    )
    target = CocoDataset(*files)[0].target
    assert np.array_equal(target["masks"][0].numpy(), mask)
    assert np.array_equal(target["masks"][1].numpy(), mask)
    assert np.array_equal(
        target["masks"][2].numpy(), bitmap(40, 60, 0, 0, 5, 40) | bitmap(40, 60, 50, 10, 60, 20)
    )
    assert target["boxes"].tolist() == [[7, 11, 33, 29], [7, 11, 33, 29], [0, 0, 60, 40]]
    assert target["iscrowd"].tolist() == [True, False, False]


def test_instances_of_other_classes_are_dropped(files):
    dataset = CocoDataset(*files, classes=["dog"])
    assert len(dataset) == 1  # b.png has only cats
    assert dataset[0].target["labels"].tolist() == [0]
    assert dataset[0].target["boxes"].tolist() == [[10, 5, 30, 25]]
    assert "labelled" not in dataset[0].target


def test_targets_list_the_labeled_classes_if_some_are_not(tmp_path, files):
    dataset = CocoDataset(*files, classes=["zebra", "dog", "cat"])
    assert dataset[0].target["labels"].tolist() == [1, 2]
    assert dataset[0].target["labelled"].tolist() == [1, 2]
    sizes = {"a.png": (40, 60), "b.png": (30, 20), "c.png": (40, 60)}
    instances = [instance(name, "cat", rectangle(2, 3, 12, 23)) for name in sizes]
    records = {"a.png": {"labelled_category_ids": [3]}, "c.png": {"labelled_category_ids": []}}
    partial = CocoDataset(
        *write_set(tmp_path, sizes, ANIMALS, instances, name="partial.json", records=records),
        filter_empty=False,
    )
    assert len(partial) == 2  # c.png has no labeled class
    assert partial[0].target["labelled"].tolist() == [0]
    assert "labelled" not in partial[1].target


def test_images_without_instances_are_skipped_or_kept(files):
    change_json(files[1], lambda content: content["annotations"].pop())
    assert len(CocoDataset(*files)) == 1
    assert CocoDataset(*files).file_names == {"a.png", "b.png"}
    dataset = CocoDataset(*files, filter_empty=False)
    assert len(dataset) == 2
    target = dataset[1].target
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 30, 20)
    assert target["labels"].shape == (0,) and target["labels"].dtype == torch.int64
    change_json(files[1], lambda content: content["annotations"].clear())
    with pytest.raises(DataError, match="None of 2 images has an instance of cat, dog.*filter_empty"):
        CocoDataset(*files)


@pytest.mark.parametrize("setting", [{"seed": -1}, {"seed": 1.5}, {"longest": 0}, {"longest": True}])
def test_settings_out_of_range_are_rejected(files, setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        CocoDataset(*files, **setting)


def test_image_of_another_size_than_annotated_is_rejected(files):
    change_json(files[1], lambda content: content["images"][1].update(width=30, height=20))
    change_json(files[1], lambda content: content["annotations"][2].update(bbox=[2, 3, 10, 10]))
    with pytest.raises(DataError, match=r"b.png has 30 x 20 .* say 20 x 30: correct"):
        CocoDataset(*files)[1]


def test_errors_name_damaged_images(files):
    dataset = CocoDataset(*files)
    data = (files[0] / "a.png").read_bytes()
    (files[0] / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="a.png"):
        dataset[0]


def test_augmentation_depends_only_on_seed_epoch_and_index(files):
    def augment(sample, generator, draw):
        number = int(torch.randint(1 << 30, (), generator=generator))
        return number, draw(generator).shape

    dataset = CocoDataset(*files, augment=augment, seed=5)
    same_seed = CocoDataset(*files, augment=augment, seed=5)
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    samples = [dataset[key] for key in keys]
    torch.manual_seed(3)
    assert [same_seed[key] for key in reversed(keys)] == samples[::-1]
    assert len({number for number, _ in samples}) == 4
    assert dataset[1] == samples[1]  # an index without an epoch belongs to epoch 0
    assert CocoDataset(*files, augment=augment, seed=6)[0] != samples[0]


def test_generators_differ():
    numbers = {int(torch.randint(1 << 40, (), generator=make_generator(*key))) for key in np.ndindex(3, 4, 5)}
    assert len(numbers) == 60


def test_cached_images_are_equal_and_need_no_file(files):
    dataset, cached = CocoDataset(*files), CocoDataset(*files, cache=True)
    expected = [dataset[index] for index in range(2)]
    for name in ("a.png", "b.png"):
        (files[0] / name).unlink()
    for index, sample in enumerate(expected):
        assert torch.equal(cached[index].image, sample.image)
        assert torch.equal(cached[index].target["masks"], sample.target["masks"])
    with pytest.raises(DataError, match="a.png"):
        dataset[0]


def test_samples_do_not_share_memory_with_the_index(files):
    dataset = CocoDataset(*files)
    for tensor in dataset[0].target.values():
        tensor.zero_()
    assert dataset[0].target["labels"].tolist() == [1, 0]


def test_data_sets_can_be_pickled(files):
    copy = pickle.loads(pickle.dumps(CocoDataset(*files)))
    assert copy[0].target["boxes"].tolist() == [[10, 5, 30, 25], [40, 8, 55, 38]]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_large_images_are_reduced_with_their_masks(tmp_path, suffix):
    name = f"large{suffix}"
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[100:300, 200:400] = 255
    Image.fromarray(pixels).save(tmp_path / name, **({"quality": 95} if suffix == ".jpg" else {}))
    instances = [
        instance(name, "dog", rectangle(200, 100, 400, 300)),
        instance(name, "cat", rectangle(0, 0, 2, 2)),  # vanishes
    ]
    files = write_set(tmp_path, {name: (400, 600)}, ANIMALS, instances)
    image, target = CocoDataset(*files, longest=90)[0]
    assert image.shape == (3, 60, 90)
    assert target["boxes"].tolist() == [[30, 15, 60, 45]]
    assert target["labels"].tolist() == [1]
    bright = (image.float().mean(dim=0) > 127).numpy()
    assert (bright != target["masks"][0].numpy()).mean() < 0.02
    assert CocoDataset(*files, longest=600)[0].image.shape == (3, 400, 600)


@pytest.mark.parametrize(("longest", "shape"), [(None, (80, 50)), (20, (20, 12))])
def test_exif_orientation_is_applied(tmp_path, longest, shape):
    path = write_rotated(tmp_path / "rotated.jpg", 50, 80)
    assert read_pixels(path, 80, 50, longest).shape == (3, *shape)
    with pytest.raises(DataError, match="80 x 50 .* say 50 x 80.*EXIF"):
        read_pixels(path, 50, 80, longest)


def test_exif_is_not_blamed_for_other_sizes(tmp_path):
    path = str(tmp_path / "plain.jpg")
    Image.fromarray(pixels_of("plain", 50, 80)).save(path)
    with pytest.raises(DataError, match="50 x 80 .* say 80 x 50: correct them or the image.$"):
        read_pixels(path, 80, 50)
    mirrored = Image.Exif()
    mirrored[EXIF_ORIENTATION] = 2
    Image.fromarray(pixels_of("plain", 50, 80)).save(path, exif=mirrored)
    with pytest.raises(DataError, match="or the image.$"):
        read_pixels(path, 80, 50)


def test_exif_orientation_of_nearly_square_images_is_applied(tmp_path):
    path = write_rotated(tmp_path / "rotated.jpg", 79, 80)
    assert read_pixels(path, 80, 79, 10).shape == (3, 10, 10)


@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_masks_are_decoded_and_reduced_exactly(tmp_path, density):
    """A reduced mask consists of the pixels at the centers of the new ones."""
    random = np.random.default_rng(5)
    masks = [np.zeros((37, 53), bool) for _ in range(4)]
    for number, mask in enumerate(masks):
        window = mask[: 37 - 9 * number, 7 * number :]
        window[:] = random.random(window.shape) < density
    instances = [
        instance("a.png", "cat", encode(mask)) for mask in masks for encode in (compressed, uncompressed)
    ]
    files = write_set(tmp_path, {"a.png": (37, 53)}, ANIMALS, instances)
    expected = np.repeat(masks, 2, axis=0)
    assert np.array_equal(CocoDataset(*files)[0].target["masks"].numpy(), expected)
    rows, columns = ((np.arange(new) + 0.5) * (old / new) for old, new in ((37, 21), (53, 30)))
    reduced = expected[:, rows.astype(int)][:, :, columns.astype(int)]
    result = CocoDataset(*files, longest=30)[0].target["masks"].numpy()
    assert np.array_equal(result, reduced[reduced.any(axis=(1, 2))])
