"""Captions in any script: no boxes, nothing invisible, no two names that look the same."""

import unicodedata
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.results import make_result
from PIL import Image

from solo_infer.errors import ResultError
from solo_infer.ops.packed_masks import pack
from solo_infer.results import caption_text as module
from solo_infer.results.caption_text import caption_text
from solo_infer.results.drawing import draw_instances
from solo_infer.results.system_fonts import system_fonts
from solo_infer.results.writers import ImageFolder

SANS = next((path for path in system_fonts() if Path(path).name == "DejaVuSans.ttf"), None)

# Names that are alike: other encodings, other scripts, invisible characters, escapes.
ALIKE = (
    ("é", "e\u0301", "e", "e\\u0301", "e\u00b4"),
    ("Å", "\u212b", "A\u030a"),
    ("а", "a", "\u0251", "ａ"),
    ("оса", "oca", "oса"),
    ("Г", "Γ", "\\u0413"),
    ("П", "Π", "\u220f"),
    ("猫咪", "狗犬", "\\u732b\\u54aa", "あい"),
    ("a\nb", "a\r\nb", "a b", "ab", "a\tb", "a\u2028b", "a\\u000ab"),
    ("ab", "a\u200bb", "a\u202eb", "a\u2066b", "a\u00adb", "a\ufeffb", "a\u115fb", "a\ufe0fb"),
    ("a b", "a\u00a0b", "a\u2003b", "a  b"),
    ("m²", "m2"),
    ("ﬁ", "fi"),
    ("µm", "μm"),
    ("Ðèn", "Đèn"),
    ("a-b", "a‐b", "a‑b", "a–b", "a−b"),
    ("א1", "1א", "אa", "aא"),
    ("\ud800", "\udc00", "\ue000", "\U0010fffe"),
    ("\\u", "\\\\u", "\\", "\\\\", "\\U0000030a"),
    ("中", "\u4e2d\u0301", "\U0001f600"),
    ("한", "\u1112\u1161\u11ab"),
    ("が", "か\u3099", "ガ"),
)


@pytest.fixture(params=["system", "none"])
def fonts(request, monkeypatch):
    """Run a test with the fonts of this machine, and without any."""
    if request.param == "none":
        monkeypatch.setattr(module, "system_fonts", lambda: ())
    return request.param


def draw(name, **options):
    """Return the pixels of a drawing with one caption."""
    return np.array(
        draw_instances(
            np.full((40, 600, 3), 90, np.uint8),
            masks=[np.zeros((40, 600), bool)],
            boxes=np.array([[5, 30, 20, 36]], np.float32),
            names=[name],
            scores=np.array([0.9]),
            **options,
        )
    )


@pytest.mark.parametrize("names", ALIKE, ids=lambda names: ascii(names[0]))
def test_different_names_have_different_captions(names, fonts):
    captions = {name: caption_text(name) for name in names}
    drawings = {name: draw(name) for name in names}
    for first, second in combinations(names, 2):
        assert captions[first] != captions[second]
        assert not np.array_equal(drawings[first], drawings[second]), (first, second)


@pytest.mark.parametrize("name", sorted({name for names in ALIKE for name in names}), ids=ascii)
def test_captions_have_only_visible_characters(name, fonts):
    drawn = caption_text(name)
    assert drawn.text.isprintable()
    for character in drawn.text:
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        assert character == " " or module._has_glyph(drawn.font_path, character)


@pytest.mark.parametrize(
    "name, text",
    [
        ("cat", "cat"),
        ("café", "cafe\\u0301"),
        ("Straße", "Stra\\u00dfe"),
        ("猫", "\\u732b"),
        ("AC\\DC", "AC\\DC"),
        ("\U0001f600", "\\U0001f600"),
        ("x" * 3000, "x" * 3000),
        ("", ""),
    ],
)
def test_names_without_any_font(name, text, monkeypatch):
    monkeypatch.setattr(module, "system_fonts", lambda: ())
    assert caption_text(name) == module.CaptionText(text)


@pytest.mark.skipif(SANS is None, reason="the font DejaVu Sans is not installed")
@pytest.mark.parametrize(
    "name", ["café", "Größe", "кошка", "кот (cat)", "Γάτα", "חתול", "قطة", "Հայերեն", "Tiếng Việt", "Đèn"]
)
def test_names_that_a_font_of_the_system_has_are_drawn_as_they_are(name):
    assert caption_text(name) == module.CaptionText(name, SANS)


@pytest.mark.skipif(SANS is None, reason="the font DejaVu Sans is not installed")
def test_the_font_is_chosen_per_text(monkeypatch):
    assert caption_text("cat", SANS) == module.CaptionText("cat", SANS)
    assert caption_text("猫 café", SANS) == module.CaptionText("\\u732b café", SANS)
    assert not np.array_equal(draw("cat", font=SANS), draw("cat"))
    monkeypatch.setattr(module.features, "check", lambda name: False)  # without Raqm
    assert caption_text("חתול").text == "\\u05d7\\u05ea\\u05d5\\u05dc"


@pytest.mark.parametrize("content", [None, b"", b"\0\1\0\0 no font"])
def test_unreadable_fonts_are_refused(content, tmp_path):
    path = tmp_path / "font\n.ttf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ResultError, match=r"Font '.*font\\n.ttf' cannot be read"):
        draw("cat", font=path)


def test_the_font_of_a_folder_is_checked_before_the_first_image(tmp_path):
    folder = ImageFolder(tmp_path / "out", font=tmp_path / "font.ttf")
    with pytest.raises(ResultError, match="Expected a scalable font"):
        folder.make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(SANS is None, reason="the font DejaVu Sans is not installed")
def test_results_and_folders_use_the_font(tmp_path):
    image, masks = np.full((60, 200, 3), 90, np.uint8), torch.ones(2, 60, 200, dtype=torch.bool)
    result = make_result(2, image=image, image_size=(60, 200), packed_masks=pack(masks))
    plain, other = result.plot(), result.plot(font=SANS)
    assert plain.tobytes() != other.tobytes()
    path = ImageFolder(tmp_path, font=SANS).add(replace(result, source="a.png"))
    assert Image.open(path).tobytes() == other.tobytes()


def test_broken_fonts_of_the_system_are_skipped(tmp_path, monkeypatch):
    broken = tmp_path / "DejaVuSans.ttf"
    broken.write_bytes(b"\0\1\0\0")
    monkeypatch.setattr(module, "system_fonts", lambda: (str(broken), str(tmp_path / "gone.ttf")))
    assert caption_text("é") == module.CaptionText("e\\u0301")
