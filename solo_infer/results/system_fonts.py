"""Font files of this machine, those of wide coverage first."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_SUFFIXES = {".ttf", ".otf", ".ttc"}
_TIMEOUT_SECONDS = 5.0
# Regular styles of fonts for many scripts, then for one script each.
_PREFERRED = (
    r"dejavusans",
    r"notosans(-regular)?",
    r"(arialuni|arial ?unicode( ?ms)?)",
    r"(segoeui|arial|liberationsans-regular|freesans)",
    r"(notosanscjk|notosans(sc|tc|jp|kr|hk)|sourcehansans).*",
    r"(msyh|simsun|simhei|pingfang|hiragino sans gb.*|stheiti.*|wqy-.*|droidsansfallback.*)",
    r"(msgothic|yugothr|meiryo|hiragino.*|ipag.*|takao.*|malgun|applegothic|applesdgothicneo|nanumgothic)",
    r"notosans[a-z]+(-regular)?",
    r"(unifont|code2000|symbola).*",
)
_OTHER_STYLES = re.compile(r"bold|italic|oblique|condensed|light|thin|black|mono|medium|heavy", re.IGNORECASE)


@cache
def system_fonts() -> tuple[str, ...]:
    """Return the paths of the font files of this machine, in the order in which they are tried."""
    files = {str(path) for folder in _folders() for path in _fonts_below(folder)} | set(_listed_fonts())
    regular = [path for path in files if not _OTHER_STYLES.search(Path(path).stem)]
    return tuple(sorted(regular, key=lambda path: (_rank(path), Path(path).name, path)))


def _rank(path: str) -> int:
    stem = Path(path).stem.lower()
    matches = (index for index, pattern in enumerate(_PREFERRED) if re.fullmatch(pattern, stem))
    return next(matches, len(_PREFERRED))


def _folders() -> Iterator[Path]:
    if sys.platform == "win32":
        yield Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"
        yield Path(os.environ.get("LOCALAPPDATA", "")) / "Microsoft" / "Windows" / "Fonts"
        return
    home = os.path.expanduser("~")
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    system = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = [os.path.join(folder, "fonts") for folder in (data, *system.split(":"))]
    folders += [os.path.join(home, ".fonts"), "/System/Library/Fonts", "/Library/Fonts"]
    yield from map(Path, [*folders, os.path.join(home, "Library", "Fonts")])


def _fonts_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):  # skips folders that cannot be read
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in _SUFFIXES)


def _listed_fonts() -> list[str]:
    """Return the font files that fontconfig lists, none where it is not installed."""
    program = shutil.which("fc-list")
    if program is None:
        return []
    try:
        process = subprocess.run(
            [program, "--format=%{file}\n"], capture_output=True, timeout=_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):  # the folders above are enough in most cases
        return []
    paths = os.fsdecode(process.stdout).splitlines()
    return [path for path in paths if Path(path).suffix.lower() in _SUFFIXES]
