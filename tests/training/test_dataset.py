import logging
import pickle

import numpy as np
import pytest
import torch
from helpers.training_sets import (
    bitmap,
    changed,
    compressed,
    instance,
    pixels_of,
    rectangle,
    uncompressed,
    write_set,
)
from PIL import Image
from torchvision import tv_tensors

from solo_infer.errors import ConfigError, DataError
from solo_infer.training.dataset import CocoDataset, make_generator, read_pixels

ANIMALS = {"dog": 7, "cat": 3}


@pytest.fixture
def simple(tmp_path):
    return write_set(
        tmp_path,
        {"a.png": (40, 60), "b.png": (30, 20)},
        ANIMALS,
        [
            instance("a.png", "dog", rectangle(10, 5, 30, 25)),
            instance("a.png", "cat", rectangle(40, 8, 55, 38)),
            instance("b.png", "cat", rectangle(2, 3, 12, 23)),
        ],
    )


def test_a_sample_is_image_and_target(simple):
    dataset = CocoDataset(*simple)
    assert dataset.classes == ("cat", "dog")  # in the order of their ids
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


def test_masks_may_be_polygons_or_rle_of_both_kinds(tmp_path):
    mask = bitmap(40, 60, 7, 11, 33, 29)
    mask[15:20, 12:18] = False
    folder, path = write_set(
        tmp_path,
        {"a.png": (40, 60)},
        ANIMALS,
        [
            instance("a.png", "dog", uncompressed(mask), iscrowd=1),
            instance("a.png", "dog", compressed(mask)),
            instance("a.png", "cat", rectangle(0, 0, 5, 40) + rectangle(50, 10, 60, 20)),
        ],
    )
    target = CocoDataset(folder, path)[0].target
    assert np.array_equal(target["masks"][0].numpy(), mask)
    assert np.array_equal(target["masks"][1].numpy(), mask)
    assert np.array_equal(
        target["masks"][2].numpy(), bitmap(40, 60, 0, 0, 5, 40) | bitmap(40, 60, 50, 10, 60, 20)
    )
    assert target["boxes"].tolist() == [[7, 11, 33, 29], [7, 11, 33, 29], [0, 0, 60, 40]]
    assert target["iscrowd"].tolist() == [True, False, False]


def test_chosen_classes_give_the_labels_and_others_are_dropped(simple):
    dataset = CocoDataset(*simple, classes=["dog"])
    assert len(dataset) == 1  # b.png has cats only
    assert dataset[0].target["labels"].tolist() == [0]
    assert dataset[0].target["boxes"].tolist() == [[10, 5, 30, 25]]
    assert "labelled" not in dataset[0].target
    assert CocoDataset(*simple, classes=["dog", "cat"])[0].target["labels"].tolist() == [0, 1]


def test_classes_that_the_file_lacks_are_not_labelled(simple):
    dataset = CocoDataset(*simple, classes=["zebra", "dog", "cat"])
    assert dataset[0].target["labels"].tolist() == [1, 2]
    assert dataset[0].target["labelled"].tolist() == [1, 2]


def test_an_image_may_tell_its_labelled_classes(tmp_path):
    pictures = {"a.png": (40, 60), "b.png": (40, 60), "c.png": (40, 60)}
    instances = [
        instance(picture, category, rectangle(10, 5, 30, 25)) for picture in pictures for category in ANIMALS
    ]
    records = {"a.png": {"labelled_category_ids": [3]}, "c.png": {"labelled_category_ids": []}}
    given = write_set(tmp_path, pictures, ANIMALS, instances, records=records)
    dataset = CocoDataset(*given, filter_empty=False)
    assert len(dataset) == 2  # c.png teaches nothing
    assert dataset[0].target["labelled"].tolist() == [0]
    assert dataset[0].target["labels"].tolist() == [0]  # its dogs may be incomplete
    assert "labelled" not in dataset[1].target
    changed(given[1], lambda content: content["images"][0].update(labelled_category_ids=[4]))
    with pytest.raises(DataError, match=r"labelled_category_ids.*\[4\].*category ids"):
        CocoDataset(*given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"segmentation": []},
        {"segmentation": [[1, 1, 20, 20]]},
        {"segmentation": rectangle(70, 5, 90, 25)},
        {"segmentation": compressed(np.zeros((40, 60), bool))},
        {"area": 0},
        {"bbox": [60, 5, 20, 20]},
        {"bbox": [-20, 5, 20, 20]},
        {"bbox": [10, 5, 0.5, 20]},
    ],
)
def test_instances_without_anything_to_learn_are_skipped(simple, wrong, caplog):
    changed(simple[1], lambda content: content["annotations"][0].update(wrong))
    with caplog.at_level(logging.INFO):
        dataset = CocoDataset(*simple)
    assert dataset[0].target["labels"].tolist() == [0]
    assert "1 of 3 instances skipped" in caplog.text


def test_empty_images_are_left_out_or_kept(simple):
    changed(simple[1], lambda content: content["annotations"].pop())
    assert len(CocoDataset(*simple)) == 1
    assert CocoDataset(*simple).file_names == {"a.png", "b.png"}
    dataset = CocoDataset(*simple, filter_empty=False)
    assert len(dataset) == 2
    target = dataset[1].target
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 30, 20)
    assert target["labels"].shape == (0,) and target["labels"].dtype == torch.int64
    with pytest.raises(DataError, match="None of 2 images has an instance of cat, dog.*filter_empty"):
        changed(simple[1], lambda content: content["annotations"].clear())
        CocoDataset(*simple)


def test_data_of_boxes_is_refused(simple):
    def drop_masks(content):
        for entry in content["annotations"]:
            entry["segmentation"] = []

    changed(simple[1], drop_masks)
    with pytest.raises(DataError, match="none of 3 annotations has a mask.*boxes cannot train masks"):
        CocoDataset(*simple)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": compressed(np.ones((20, 30), bool))}, r"annotation 0 of image 100.*\[20, 30\].*40"),
        ({"segmentation": None}, "annotation 0 .*segmentation"),
        ({"bbox": [1, 2]}, r"annotation 0 .*bbox.*\[1, 2\].*width"),
        ({"category_id": 99}, "category_id"),
    ],
)
def test_wrong_annotations_are_named(simple, change, message):
    changed(simple[1], lambda content: content["annotations"][0].update(change))
    with pytest.raises(DataError, match=message):
        CocoDataset(*simple)


def test_wrong_files_are_named(simple, tmp_path):
    folder, path = simple
    with pytest.raises(DataError, match="other.json"):
        CocoDataset(folder, folder / "other.json")
    with pytest.raises(DataError, match="no folder .*pictures"):
        CocoDataset(folder / "pictures", path)
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match="1 of 2 images .*'b.png'"):
        CocoDataset(folder, path)
    path.write_text("{")
    with pytest.raises(DataError, match="set.json"):
        CocoDataset(folder, path)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dogs", "bird"], r"no category 'dogs' \(did you mean 'dog'\?\).*cat, dog"),
        (["cat", "Dog"], r"'Dog' \(did you mean 'dog'\?\)"),
        (["horse"], "no category 'horse'"),
    ],
)
def test_wrong_class_names_get_suggestions(simple, classes, message):
    with pytest.raises(DataError, match=message):
        CocoDataset(*simple, classes=classes)


def test_class_names_that_are_probably_wrong_are_warned_of(simple, caplog):
    CocoDataset(*simple, classes=["cat", "dogs"])
    assert "'dogs' (did you mean 'dog'?)" in caplog.text


@pytest.mark.parametrize("classes", ["cat", [], ["cat", "cat"], [3]])
def test_classes_must_be_different_names(simple, classes):
    with pytest.raises(ConfigError, match="classes="):
        CocoDataset(*simple, classes=classes)


@pytest.mark.parametrize("setting", [{"seed": -1}, {"longest": 0}])
def test_settings_out_of_range_are_refused(simple, setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        CocoDataset(*simple, **setting)


def test_an_image_of_another_size_is_refused(simple):
    changed(simple[1], lambda content: content["images"][1].update(width=30, height=20))
    changed(simple[1], lambda content: content["annotations"][2].update(bbox=[2, 3, 10, 10]))
    with pytest.raises(DataError, match=r"b.png has 30 x 20 .* say 20 x 30.*EXIF"):
        CocoDataset(*simple)[1]


def test_a_damaged_image_is_named(simple):
    dataset = CocoDataset(*simple)
    data = (simple[0] / "a.png").read_bytes()
    (simple[0] / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="a.png"):
        dataset[0]


def test_augmentation_depends_on_seed_epoch_and_index_alone(simple):
    def augment(sample, generator, draw):
        number = int(torch.randint(1 << 30, (), generator=generator))
        return number, draw(generator).shape

    dataset = CocoDataset(*simple, augment=augment, seed=5)
    again = CocoDataset(*simple, augment=augment, seed=5)
    keys = [(0, 0), (0, 1), (1, 0), (1, 1)]
    first = [dataset[key] for key in keys]
    torch.manual_seed(3)
    assert [again[key] for key in reversed(keys)] == first[::-1]
    assert len({number for number, _ in first}) == 4
    assert dataset[1] == first[1]  # an index alone is of epoch 0
    assert CocoDataset(*simple, augment=augment, seed=6)[0] != first[0]


def test_generators_differ():
    numbers = {int(torch.randint(1 << 40, (), generator=make_generator(*key))) for key in np.ndindex(3, 4, 5)}
    assert len(numbers) == 60


def test_cached_images_are_the_same_and_need_no_file(simple):
    plain, cached = CocoDataset(*simple), CocoDataset(*simple, cache=True)
    expected = [plain[index] for index in range(2)]
    for name in ("a.png", "b.png"):
        (simple[0] / name).unlink()
    for index, sample in enumerate(expected):
        assert torch.equal(cached[index].image, sample.image)
        assert torch.equal(cached[index].target["masks"], sample.target["masks"])
    with pytest.raises(DataError, match="a.png"):
        plain[0]


def test_samples_do_not_share_memory_with_the_index(simple):
    dataset = CocoDataset(*simple)
    for part in dataset[0].target.values():
        part.zero_()
    assert dataset[0].target["labels"].tolist() == [1, 0]


def test_a_dataset_can_be_sent_to_a_process(simple):
    sent = pickle.loads(pickle.dumps(CocoDataset(*simple)))
    assert sent[0].target["boxes"].tolist() == [[10, 5, 30, 25], [40, 8, 55, 38]]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_large_images_are_shrunk_with_their_masks(tmp_path, suffix):
    name = f"large{suffix}"
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[100:300, 200:400] = 255
    Image.fromarray(pixels).save(tmp_path / name, **({"quality": 95} if suffix == ".jpg" else {}))
    instances = [
        instance(name, "dog", rectangle(200, 100, 400, 300)),
        instance(name, "cat", rectangle(0, 0, 2, 2)),  # vanishes
    ]
    given = write_set(tmp_path, {name: (400, 600)}, ANIMALS, instances)
    image, target = CocoDataset(*given, longest=90)[0]
    assert image.shape == (3, 60, 90)
    assert target["boxes"].tolist() == [[30, 15, 60, 45]]
    assert target["labels"].tolist() == [1]
    bright = (image.float().mean(dim=0) > 127).numpy()
    assert (bright != target["masks"][0].numpy()).mean() < 0.02
    assert CocoDataset(*given, longest=600)[0].image.shape == (3, 400, 600)


@pytest.mark.parametrize(("longest", "shape"), [(None, (80, 50)), (20, (20, 12))])
@pytest.mark.parametrize("width", [50, 80])
def test_exif_orientation_counts(tmp_path, longest, shape, width):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = str(tmp_path / "turned.jpg")
    Image.fromarray(pixels_of("turned", 50, 80)).save(path, exif=exif)
    assert read_pixels(path, 80, 50, longest).shape == (3, *shape)
    with pytest.raises(DataError, match="80 x 50 .* say 50 x 80.*EXIF"):
        read_pixels(path, 50, 80, longest)


def test_nearly_square_images_may_be_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = str(tmp_path / "turned.jpg")
    Image.fromarray(pixels_of("turned", 79, 80)).save(path, exif=exif)
    assert read_pixels(path, 80, 79, 10).shape == (3, 10, 10)


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_any_mask_is_read_and_shrunk_exactly(tmp_path, share):
    """Shrunk, a mask has the pixels under the centers of the new ones."""
    random = np.random.default_rng(5)
    masks = [np.zeros((37, 53), bool) for _ in range(4)]
    for number, mask in enumerate(masks):
        part = mask[: 37 - 9 * number, 7 * number :]
        part[:] = random.random(part.shape) < share
    instances = [
        instance("a.png", "cat", encode(mask)) for mask in masks for encode in (compressed, uncompressed)
    ]
    given = write_set(tmp_path, {"a.png": (37, 53)}, ANIMALS, instances)
    expected = np.repeat(masks, 2, axis=0)
    assert np.array_equal(CocoDataset(*given)[0].target["masks"].numpy(), expected)
    rows, columns = ((np.arange(new) + 0.5) * (old / new) for old, new in ((37, 21), (53, 30)))
    shrunk = expected[:, rows.astype(int)][:, :, columns.astype(int)]
    found = CocoDataset(*given, longest=30)[0].target["masks"].numpy()
    assert np.array_equal(found, shrunk[shrunk.any(axis=(1, 2))])
