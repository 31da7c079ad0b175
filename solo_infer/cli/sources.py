"""Sources of a command: files, folders, patterns and URLs that its arguments name, each once."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from solo_infer.cli.terminal import info
from solo_infer.errors import ImageError, OfflineError, SoloInferError
from solo_infer.runtime.messages import quoted


@dataclass(frozen=True)
class Sources:
    """Files to segment, and others in their folders that must not be overwritten.

    Attributes:
        names: Files and URLs as entered.
        left_out: Files that have the names of drawings, but were not written by this library.
    """

    names: list[str]
    left_out: list[str]


def expand(entered: Sequence[str], output: Path, report: Callable[[str, SoloInferError], None]) -> Sources:
    """Return the files and URLs of all sources, each once; report sources that do not exist.

    Drawings of earlier runs in folders and among the matches of patterns are left out.

    Args:
        entered: Files, folders, patterns and URLs.
        output: Folder of drawings.
        report: Called with the name and the error of a source that does not exist.
    """
    from solo_infer.data.patterns import file_key
    from solo_infer.data.sources import check_source, is_url, iterate_sources
    from solo_infer.data.video_sources import is_stream_name
    from solo_infer.results.drawing import is_own_drawing
    from solo_infer.results.video_writer import is_own_video
    from solo_infer.results.writers import drawings_among

    names: dict[Hashable, str] = {}  # as entered, by file or URL
    drawings: list[str] = []
    for source in entered:
        try:
            found = list(map(str, iterate_sources(source)))
            if found != [source]:
                drawings += drawings_among(found, output)
            for name in found:
                check_source(name)
                is_address = is_url(name) or is_stream_name(name)
                key = name if is_address else file_key(os.path.expanduser(name))
                names.setdefault(key, name)
        except (ImageError, OfflineError) as error:
            report(source, error)
    named = {os.path.abspath(source) for source in entered}
    drawings = [drawing for drawing in dict.fromkeys(drawings) if os.path.abspath(drawing) not in named]
    if drawings:
        info(
            f"{len(drawings)} file{'' if len(drawings) == 1 else 's'} left out as drawings of other images: "
            f"{quoted(drawings[0])}{', ...' if len(drawings) > 1 else ''}"
        )
    sources = [name for name in names.values() if name not in set(drawings)]
    others = [drawing for drawing in drawings if not (is_own_drawing(drawing) or is_own_video(drawing))]
    return Sources(sources, others)
