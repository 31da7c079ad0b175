"""Captions in any script: a font that has the characters of a text, and escapes for those that none has.

Two different texts never look the same. Characters that are invisible, that are another encoding of other
characters, or that could be mistaken for those of another script are written as escapes.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from PIL import ImageFont, features

from solo_infer.errors import ResultError
from solo_infer.results.system_fonts import system_fonts
from solo_infer.runtime.messages import quoted

Font = ImageFont.FreeTypeFont

_PROBE_SIZE = 24  # font size in pixels at which glyphs are compared
_NO_CHARACTER = "\U0010fffe"  # every font shows its glyph for missing characters
_REQUIRED = "aZ09\\."  # a font without these cannot write an escape
# Scripts that share shapes. A word belongs to the first one in which it could be written.
_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "COPTIC", "CHEROKEE")
_KANA = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK")
_LETTERS = ((0x41, 0x250), (0x370, 0x590), (0x13A0, 0x1400), (0x2C80, 0x2D00), (0x3041, 0x3100))
_SIGNS = ((0x20, 0x7F), (0xA0, 0xC0), (0x2B0, 0x300), (0x2010, 0x2060), (0x2190, 0x2300), (0x25A0, 0x2700))
_KANJI = "一二三八力工口夕卜千才"  # some fonts draw them as kana
_PREFERRED = "\u0110"  # of three equal letters, the one of Vietnamese and Croatian
_AMBIGUOUS_BACKSLASH = re.compile(r"\\(?=[uU\\])")  # could be the start of an escape


@dataclass(frozen=True)
class CaptionText:
    """A text as it is drawn.

    Attributes:
        text: The text, with escapes for characters that are not drawn.
        font_path: Font file. None for Pillow's own font, which has the characters of ASCII.
    """

    text: str
    font_path: str | None = None


def caption_text(text: str, font_path: str | os.PathLike[str] | None = None) -> CaptionText:
    r"""Return a text as it is drawn, in the first font that has all of its characters.

    Characters that no font has become "\u732b", and accented letters the letter and its accent, "e\u0301".

    Args:
        text: Any text.
        font_path: Font file that is tried first. Further fonts are Pillow's own and those of the system.

    Raises:
        ResultError: The font file cannot be read.
    """
    if font_path is not None:
        require_font(font_path)
    text = _AMBIGUOUS_BACKSLASH.sub(r"\\\\", text)
    kept = [not is_unsafe for is_unsafe in _unsafe_characters(text)]
    best, most = CaptionText(_join(text, [character.isascii() for character in text])), -1
    for path in _candidates(text, font_path):
        drawable = _drawable_characters(text, kept, path)
        if drawable is not None and sum(drawable) > most:
            best, most = CaptionText(_join(text, drawable), path), sum(drawable)
        if most == sum(kept):
            break
    return best


def load_font(path: str | None, size: int) -> Font:
    """Return a font in a size in pixels. None is Pillow's own."""
    if path is None:
        return cast(Font, ImageFont.load_default(size))  # FreeType, because a size is given
    with open(path, "rb") as stream:  # by its path, Pillow would take another font of the same name
        return ImageFont.truetype(stream, size)


def require_font(path: str | os.PathLike[str]) -> None:
    """Check that a font file can be read.

    Raises:
        ResultError: It cannot.
    """
    try:
        load_font(os.fspath(path), _PROBE_SIZE)
    except (OSError, ValueError, TypeError) as error:
        raise ResultError(
            f"Font {quoted(path)} cannot be read: {error}. Expected a scalable font, such as a .ttf file."
        ) from error


def _candidates(text: str, font_path: str | os.PathLike[str] | None) -> Iterator[str | None]:
    if font_path is not None:
        yield os.fspath(font_path)
    yield None
    if not text.isascii():
        yield from system_fonts()


def _join(text: str, drawable: list[bool]) -> str:
    """Return a text with escapes for the characters that are not drawable."""
    pairs = zip(text, drawable, strict=True)
    is_printable = [drawn and character.isprintable() for character, drawn in pairs]
    return "".join(c if drawn else _escape(c) for c, drawn in zip(text, is_printable, strict=True))


def _escape(character: str) -> str:
    base, *marks = list(unicodedata.normalize("NFD", character))
    if marks and base.isascii() and unicodedata.is_normalized("NFC", character):
        return base + "".join(f"\\u{ord(mark):04x}" for mark in marks)
    code = ord(character)
    # A mark of its own has the long form, because the short one belongs to an accented letter.
    return f"\\U{code:08x}" if code > 0xFFFF or unicodedata.combining(character) else f"\\u{code:04x}"


def _unsafe_characters(text: str) -> list[bool]:
    """Return for each character whether it is escaped in every font."""
    unsafe = [not c.isprintable() or unicodedata.normalize("NFKC", c) != c for c in text]
    rest = "".join(c for c, is_unsafe in zip(text, unsafe, strict=True) if not is_unsafe)
    has_other_encoding = unicodedata.normalize("NFC", rest) != rest
    directions = [unicodedata.bidirectional(c) for c in text]
    to_left = [direction in ("R", "AL", "AN") for direction in directions]
    # Reordering makes texts look alike that mix directions, and needs the library Raqm.
    is_mixed = any(to_left) and any(direction in ("L", "EN", "AN") for direction in directions)
    reorders = is_mixed or not features.check("raqm")
    return [
        is_unsafe or (has_other_encoding and not c.isascii()) or (reorders and is_to_left)
        for c, is_unsafe, is_to_left in zip(text, unsafe, to_left, strict=True)
    ]


def _drawable_characters(text: str, kept: list[bool], path: str | None) -> list[bool] | None:
    """Return for each character whether a font draws it, None if the font cannot write escapes."""
    try:
        if not all(_has_glyph(path, character) for character in _REQUIRED):
            return None
        drawable = [keep and (c == " " or _has_glyph(path, c)) for c, keep in zip(text, kept, strict=True)]
    except OSError:  # a font of bitmaps in other sizes
        return None
    if path is None or not any(drawable):
        return drawable
    mistakable = _mistakable(text, path)
    return [drawn and index not in mistakable for index, drawn in enumerate(drawable)]


def _mistakable(text: str, path: str) -> set[int]:
    """Return the indices of characters that look like others in this text."""
    alike = _lookalikes(path)
    indices = set()
    for word in re.finditer(r"[^\W\d_]+", text):
        letters = {index: text[index] for index in range(*word.span()) if _script(text[index]) in _SCRIPTS}
        scripts = {_script(letter) for letter in letters.values()}
        first = min(scripts, key=_SCRIPTS.index, default="LATIN")
        is_mistakable = len(scripts) == 1 and _has_another_reading(letters.values(), first, alike)
        indices |= {index for index, c in letters.items() if _script(c) != first or is_mistakable}
    for index, character in enumerate(text):
        if any(_is_preferred(other, character) for other in alike.get(character, ())):
            indices.add(index)
    return {index for index in indices if not text[index].isascii()}


def _has_another_reading(letters: Collection[str], script: str, alike: dict[str, list[str]]) -> bool:
    """Return whether all letters of a word look like letters of one earlier script."""
    return any(
        all(earlier in map(_script, alike.get(letter, ())) for letter in letters)
        for earlier in _SCRIPTS[: _SCRIPTS.index(script)]
    )


def _is_preferred(other: str, character: str) -> bool:
    """Return whether a character that looks the same is drawn, and this one escaped, in the same script."""
    scripts = {_script(character), _script(other)}
    is_related = len(scripts) == 1 or scripts <= set(_KANA) or "" in scripts
    return is_related and (other == _PREFERRED or (other < character and character != _PREFERRED))


def _script(character: str) -> str:
    """Return the first word of the name of a letter, such as "LATIN"; "" for other characters."""
    return unicodedata.name(character, "").partition(" ")[0] if character.isalpha() else ""


@lru_cache(maxsize=32)
def _lookalikes(path: str) -> dict[str, list[str]]:
    """Return the other characters that a font draws in the same way, for letters and signs that have any."""
    groups = defaultdict(list)
    codes = [code for first, end in (*_LETTERS, *_SIGNS) for code in range(first, end)]
    for character in dict.fromkeys([*map(chr, codes), *_KANJI]):
        is_compatible = unicodedata.normalize("NFKC", character) == character
        if character.isprintable() and is_compatible and _has_glyph(path, character):
            groups[_glyph(path, character)].append(character)
    several = [group for group in groups.values() if len(group) > 1]
    return {c: [other for other in group if other != c] for group in several for c in group}


def _has_glyph(path: str | None, character: str) -> bool:
    """Return whether a font has a visible glyph of its own for a character."""
    if path is None:
        return character.isascii()
    glyph = _glyph(path, character)
    return any(glyph[-1]) and glyph != _glyph(path, _NO_CHARACTER)


@lru_cache(maxsize=8192)
def _glyph(path: str, character: str) -> tuple[Any, ...]:
    """Return advance, offset, size and pixels of a character."""
    font = _probe_font(path)  # its layout is basic: Raqm adds a circle to marks
    pixels, offset = font.getmask2(character, mode="L")
    return font.getlength(character), offset, pixels.size, bytes(pixels)


@lru_cache(maxsize=256)
def _probe_font(path: str) -> Font:
    with open(path, "rb") as stream:
        return ImageFont.truetype(stream, _PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC)
