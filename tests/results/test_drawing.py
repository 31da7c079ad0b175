"""Drawing of instances on images, and image files."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from solo_infer.errors import ResultError
from solo_infer.results.drawing import PALETTE, draw_instances, save_image

HEIGHT, WIDTH = 120, 160
GRAY = 100


def background(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.full((height, width, 3), GRAY, np.uint8)


def rectangle_mask(box: tuple[int, int, int, int], size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    x1, y1, x2, y2 = box
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def draw(
    *boxes: tuple[int, int, int, int], scores: Any = None, image: Any = None, **options: Any
) -> np.ndarray:
    """Draw rectangular instances, by default without captions, and return the pixels."""
    image = background() if image is None else image
    drawing = draw_instances(
        image,
        masks=options.pop("masks", (rectangle_mask(box, image.shape[:2]) for box in boxes)),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        names=options.pop("names", ["cat"] * len(boxes)),
        scores=np.linspace(0.9, 0.5, len(boxes)) if scores is None else np.array(scores, np.float32),
        **{"captions": False, **options},
    )
    assert drawing.mode == "RGB"
    return np.asarray(drawing)


def blend(color: tuple[int, int, int], alpha: float, background: Any = GRAY) -> np.ndarray:
    return (1 - alpha) * np.asarray(background, float) + alpha * np.asarray(color, float)


def assert_near(pixels: np.ndarray, expected: np.ndarray, tolerance: float = 1.5) -> None:
    assert np.abs(pixels.astype(float) - expected).max() <= tolerance


def changed(pixels: np.ndarray) -> np.ndarray:
    return (pixels != GRAY).any(axis=2)


def test_no_instances_give_a_copy_of_the_image() -> None:
    image = background()
    pixels = draw(image=image, captions=True, boxes_visible=True)
    np.testing.assert_array_equal(pixels, image)


def test_images_of_all_strides() -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for view in (image[:, ::-1], image[::2, ::3], image[:, :, ::-1], np.asfortranarray(image)):
        np.testing.assert_array_equal(draw(image=view), view)


def test_image_is_not_modified() -> None:
    image = background()
    image.flags.writeable = False
    pixels = draw((10, 10, 60, 60), image=image, captions=True, boxes_visible=True)
    assert (image == GRAY).all() and changed(pixels).any()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_mask_is_blended_and_contour_is_solid(alpha: float) -> None:
    pixels = draw((20, 30, 80, 90), alpha=alpha)
    assert_near(pixels[35:85, 25:75], blend(PALETTE[0], alpha))
    for contour in (pixels[30, 20:80], pixels[89, 20:80], pixels[30:90, 20], pixels[30:90, 79]):
        assert_near(contour, np.array(PALETTE[0]), 0)


def test_only_pixels_of_the_mask_change() -> None:
    yy, xx = np.mgrid[:HEIGHT, :WIDTH]
    disc = (yy - 60) ** 2 + (xx - 70) ** 2 < 40**2
    disc &= ~((yy - 60) ** 2 + (xx - 70) ** 2 < 15**2)
    pixels = draw((31, 21, 110, 100), masks=[disc])
    np.testing.assert_array_equal(changed(pixels), disc)
    assert_near(pixels[60, 70 + 15], np.array(PALETTE[0]), 0)  # holes have a contour too


def test_contour_width_grows_with_the_image() -> None:
    def contour_width(side: int) -> int:
        pixels = draw((side // 4, side // 4, side // 2, side // 2), image=background(side, side))
        return int((pixels[side * 3 // 8] == PALETTE[0]).all(axis=1).sum()) // 2

    assert contour_width(100) == 1
    assert 1 < contour_width(800) < contour_width(3000) <= 6


def test_fractional_box_keeps_the_whole_mask() -> None:
    image = background()
    drawing = draw_instances(
        image,
        masks=[rectangle_mask((10, 20, 31, 41))],
        boxes=np.array([[10.4, 20.6, 30.2, 40.1]], np.float32),
        names=["cat"],
        scores=np.ones(1),
        captions=False,
    )
    np.testing.assert_array_equal(changed(np.asarray(drawing)), rectangle_mask((10, 20, 31, 41)))


def test_masks_are_clipped_to_their_boxes() -> None:
    pixels = draw((40, 40, 60, 60), masks=[np.ones((HEIGHT, WIDTH), bool)])
    np.testing.assert_array_equal(changed(pixels), rectangle_mask((40, 40, 60, 60)))


@pytest.mark.parametrize("box", [(-30, -20, 40, 30), (130, 90, 190, 150), (-10, -10, 170, 130)])
def test_boxes_are_clipped_to_the_image(box: tuple[int, int, int, int]) -> None:
    x1, y1, x2, y2 = box
    expected = rectangle_mask((max(0, x1), max(0, y1), x2, y2))
    pixels = draw(box, masks=[expected], boxes_visible=True)
    np.testing.assert_array_equal(changed(pixels), expected)
    draw(box, masks=[expected], captions=True)


def test_highest_score_is_on_top_in_any_order() -> None:
    boxes = ((20, 20, 80, 80), (50, 50, 110, 110))
    for scores in ([0.9, 0.2], [0.2, 0.9]):
        top = int(np.argmax(scores))
        pixels = draw(*boxes, scores=scores, alpha=1.0)
        assert_near(pixels[50:80, 50:80], np.array(PALETTE[top]), 0)
    pixels = draw(*boxes, scores=[0.2, 0.9], alpha=0.5)
    assert_near(pixels[60:70, 60:70], blend(PALETTE[1], 0.5, blend(PALETTE[0], 0.5)), 2.5)


def test_colors_are_selected_by_index() -> None:
    boxes = [(10 * i, 10, 10 * i + 8, 30) for i in range(10)]
    pixels = draw(*boxes, alpha=1.0)
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        assert_near(pixels[y1:y2, x1:x2], np.array(PALETTE[index]), 0)


def test_palette_is_distinguishable_and_repeats() -> None:
    colors = np.array(PALETTE, float)
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 1000 * np.eye(len(colors))
    assert distances.min() >= 60
    consecutive = np.abs(colors - np.roll(colors, 1, axis=0)).sum(axis=1)
    assert consecutive.min() >= 150
    pixels = draw(
        *[(5, 5, 25, 25)] * (len(PALETTE) + 1), scores=np.linspace(0.1, 0.9, len(PALETTE) + 1), alpha=1
    )
    assert_near(pixels[5:25, 5:25], np.array(PALETTE[0]), 0)


def test_empty_mask_is_not_drawn() -> None:
    pixels = draw((0, 0, 0, 0), captions=True, boxes_visible=True)
    assert not changed(pixels).any()


def test_boxes_are_drawn_inside_their_edges() -> None:
    box = (20, 30, 80, 90)
    pixels = draw(box, masks=[np.zeros((HEIGHT, WIDTH), bool)], boxes_visible=True)
    inner = rectangle_mask((21, 31, 79, 89))
    np.testing.assert_array_equal(changed(pixels), rectangle_mask(box) & ~inner)


def test_captions_have_background_of_their_color_and_legible_text() -> None:
    empty = [np.zeros((HEIGHT, WIDTH), bool)]
    plain = draw((20, 40, 120, 110), masks=empty)
    pixels = draw((20, 40, 120, 110), masks=empty, captions=True)
    assert not changed(plain).any()
    ys, xs = np.nonzero(changed(pixels))
    assert (xs.min(), ys.max() + 1) == (20, 40)  # on top of the box, flush with its left side
    caption = pixels[ys.min() : 40, 20 : xs.max() + 1]
    assert caption.shape[0] >= 11 and caption.shape[1] > 2 * caption.shape[0]
    assert (caption == PALETTE[0]).all(axis=2).mean() > 0.4
    letters = np.abs(caption.astype(int) - PALETTE[0]).sum(axis=2)
    assert (letters > 250).sum() > 20


def test_captions_show_name_and_score() -> None:
    def caption(name: str, score: float) -> np.ndarray:
        empty = [np.zeros((HEIGHT, WIDTH), bool)]
        return draw((20, 40, 120, 110), masks=empty, captions=True, names=[name], scores=[score])

    base = caption("cat", 0.93)
    np.testing.assert_array_equal(base, caption("cat", 0.931))
    assert (base != caption("cat", 0.92)).any()
    assert (base != caption("cow", 0.93)).any()
    assert changed(caption("traffic light", 0.93)).sum() > changed(base).sum()


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (140, 0, 160, 20), (0, 100, 20, 120), (140, 100, 160, 120)])
def test_captions_stay_inside_the_image(box: tuple[int, int, int, int]) -> None:
    reference = draw((60, 60, 80, 80), masks=[np.zeros((HEIGHT, WIDTH), bool)], captions=True)
    pixels = draw(box, masks=[np.zeros((HEIGHT, WIDTH), bool)], captions=True)
    assert changed(pixels).sum() == changed(reference).sum()  # the background is not clipped


def test_captions_do_not_overlap_if_there_is_room() -> None:
    count = 4
    masks = [np.zeros((HEIGHT, WIDTH), bool)] * count
    pixels = draw(*[(20, 40, 140, 110)] * count, masks=masks, captions=True)
    areas = [(pixels == color).all(axis=2).sum() for color in PALETTE[:count]]
    assert min(areas) > 0.8 * max(areas)


def test_captions_are_reduced_or_omitted_in_small_images() -> None:
    wide = changed(draw((0, 0, 1, 1), image=background(60, 400), captions=True, names=["x" * 14]))
    narrow = changed(draw((0, 0, 1, 1), image=background(60, 90), captions=True, names=["x" * 14]))
    assert 0 < narrow.any(axis=1).sum() < wide.any(axis=1).sum()
    tiny = draw((4, 4, 8, 8), image=background(12, 12), captions=True)
    np.testing.assert_array_equal(changed(tiny), rectangle_mask((4, 4, 8, 8), (12, 12)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4000), (4000, 1), (2, 3)])
def test_extreme_sizes(height: int, width: int) -> None:
    pixels = draw((0, 0, width, height), image=background(height, width), captions=True, boxes_visible=True)
    assert pixels.shape == (height, width, 3)
    assert changed(pixels).all()


def test_names_in_all_scripts_are_drawn() -> None:
    assert changed(draw((20, 40, 120, 110), captions=True, names=["Stra\u00dfe \u732b \U0001f431"])).any()
    assert changed(draw((20, 40, 120, 110), captions=True, names=[""])).any()


def test_masks_of_a_generator_are_released() -> None:
    boxes = [(10 * i, 10, 10 * i + 30, 50) for i in range(5)]
    references: list[weakref.ref[np.ndarray]] = []

    def mask_of(box: tuple[int, int, int, int]) -> np.ndarray:
        mask = rectangle_mask(box)
        references.append(weakref.ref(mask))
        return mask

    def masks() -> Iterator[np.ndarray]:
        for index, box in enumerate(boxes):
            assert not any(mask() is not None for mask in references[: max(0, index - 1)])
            yield mask_of(box)

    pixels = draw(*boxes, masks=masks())
    assert changed(pixels)[10:50, :70].all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        Image.new("RGB", (5, 5)),
    ],
    ids=lambda image: str(getattr(image, "shape", "PIL")),
)
def test_invalid_image_raises_error(image: Any) -> None:
    with pytest.raises(ResultError, match="Image to draw on"):
        draw_instances(
            image,
            masks=[],
            boxes=np.zeros((0, 4), np.float32),
            names=[],
            scores=np.zeros(0),
        )


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range_raises_error(alpha: float) -> None:
    with pytest.raises(ResultError, match="alpha"):
        draw((0, 0, 5, 5), alpha=alpha)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((3, 4), np.float32)}, r"boxes.*\(3, 4\).*expected \(2, 4\)"),
        ({"boxes": np.zeros((2, 5), np.float32)}, r"boxes.*\(2, 5\)"),
        ({"boxes": np.full((2, 4), np.nan, np.float32)}, "NaN"),
        ({"names": ["cat"]}, "names"),
        ({"scores": np.ones(1)}, "for 1 scores"),
        ({"scores": np.ones((2, 1))}, "scores"),
        ({"masks": [np.ones((4, 6), bool)]}, "1 masks for 2 scores"),
        ({"masks": [np.ones((4, 6), bool)] * 3}, "More masks than the 2"),
        ({"masks": [np.ones((6, 4), bool)] * 2}, r"Mask 0.*\(6, 4\).*\(4, 6\)"),
        ({"masks": [np.ones((4, 6), bool), np.ones((4, 6), np.uint8)]}, "Mask 1.*uint8"),
    ],
)
def test_mismatched_sizes_raise_error(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "masks": [np.ones((4, 6), bool)] * 2,
        "boxes": np.array([[0, 0, 6, 4]] * 2, np.float32),
        "names": ["cat", "cat"],
        "scores": np.array([0.5, 0.4]),
    }
    draw_instances(background(4, 6), **arguments)
    with pytest.raises(ResultError, match=message):
        draw_instances(background(4, 6), **{**arguments, **change})


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.webp", "a.bmp"])
def test_suffix_selects_image_format(tmp_path: Path, name: str) -> None:
    pixels = draw((10, 10, 60, 60))
    path = save_image(Image.fromarray(pixels), tmp_path / name)
    assert path == tmp_path / name
    with Image.open(path) as image:
        difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels)
    assert difference.mean() < 2
    assert path.suffix.lower() not in (".png", ".bmp") or difference.max() == 0
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a", "a.txt", "a.mp4", ".png"])
def test_other_suffix_raises_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ResultError, match=r"ending in \.jpg"):
        save_image(Image.new("RGB", (2, 2)), tmp_path / name)


def test_file_that_cannot_be_written_raises_error(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="nowhere.*folder"):
        save_image(Image.new("RGB", (2, 2)), tmp_path / "nowhere" / "a.png")
    with pytest.raises(ResultError, match="a.jpg"):
        save_image(Image.new("RGB", (70_000, 1)), tmp_path / "a.jpg")  # more than JPEG can hold
    assert list(tmp_path.iterdir()) == []


def test_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert save_image(Image.new("RGB", (2, 2)), "~/a.png") == tmp_path / "a.png"
    assert (tmp_path / "a.png").is_file()
