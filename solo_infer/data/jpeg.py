"""JPEG files that lack only their end marker.

Some programs write JPEG files without the two bytes of the end-of-image marker. All their pixels are there,
and browsers and OpenCV show them, but Pillow refuses them like files that are truncated. Pillow's setting
``LOAD_TRUNCATED_IMAGES`` would accept both, in all threads.
"""

from __future__ import annotations

import re

_END = b"\xff\xd9"
_SOF_MARKERS = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB})
_SEEDS = ((0xAA, 0), (0x5B, 37), (0xD3, 101), (0x39, 59))
_START_OF_SCAN, _START = 0xDA, b"\xff\xd8"
_COEFFICIENTS = 64
# The end of entropy-coded data: a marker that is neither a stuffed 0xFF, nor a restart, nor padding.
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# Entropy-coded data of several kinds, none of which a decoder takes for the zeros of missing data.
_PADDINGS = tuple(bytes((start + step * index) % 255 for index in range(64)) for start, step in _SEEDS)


def end_variants(data: bytes) -> list[bytes]:
    """Return several ways to complete a JPEG file without end marker; none if it obviously lacks more.

    The file is complete if all decode to the same pixels. A decoder that runs out of data takes zeros, or
    gray, for what is missing: in all variants but the first it finds other data there. Behind a complete scan
    it skips them.

    Args:
        data: Content of the file.
    """
    data = data.rstrip(b"\xff")  # the first byte of a marker
    if not data.startswith(_START) or not _has_all_scans(data):
        return []
    return [data + _END, *(data + padding + _with_restarts(padding) + _END for padding in _PADDINGS)]


def _with_restarts(padding: bytes) -> bytes:
    """Return padding behind each restart marker, in case that a decoder expects one of them."""
    return b"".join(bytes((0xFF, 0xD0 + number)) + padding for number in range(8))


def _has_all_scans(data: bytes) -> bool:
    """Return whether the scans of a file have every coefficient of every component at full precision."""
    missing: set[tuple[int, int]] = set()
    position, has_frame = 2, False
    while (match := _NEXT_MARKER.search(data, position)) is not None:
        marker, start = data[match.start() + 1], match.end()
        length = int.from_bytes(data[start : start + 2], "big")
        segment = data[start + 2 : start + length]
        position = start + length
        if length < 2 or position > len(data):
            return False
        if marker in _SOF_MARKERS and len(segment) >= 6 and not has_frame:
            has_frame = True
            missing = {(component, index) for component in segment[6::3] for index in range(_COEFFICIENTS)}
        elif marker == _START_OF_SCAN and len(segment) >= 4:
            components = segment[1:-3:2]
            first, last, low_bit = segment[-3], segment[-2], segment[-1] & 15
            if low_bit == 0:
                missing -= {
                    (component, index) for component in components for index in range(first, last + 1)
                }
    return has_frame and not missing
