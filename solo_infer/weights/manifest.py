"""The published checkpoints, as data: ``weights_manifest.json``."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from solo_infer.errors import UnknownModelError

MANIFEST_NAME = "weights_manifest.json"
DEFAULT_MODEL = "decoupled_r50_3x"
EMBEDDED_MODEL = "tiny"  # lies inside the package: needs no network


@dataclass(frozen=True)
class Source:
    """A place where a published file can be had.

    Attributes:
        kind: "hub", "url" or "package".
        url: For "url".
        repo: For "hub": owner/name.
        filename: For "hub": the file in the repo. For "package": the directory in ours.
        revision: For "hub": branch, tag or commit.
    """

    kind: str
    url: str = ""
    repo: str = ""
    filename: str = ""
    revision: str = "main"

    @property
    def address(self) -> str:
        """The address to fetch the file from by hand, or where it lies if it came with the package."""
        if self.kind == "package":
            return str(_package() / self.filename)
        if self.kind == "hub":
            return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{self.filename}"
        return self.url


@dataclass(frozen=True)
class ManifestEntry:
    """One published checkpoint.

    Attributes:
        name: What ``from_pretrained`` takes.
        family: "solo", "decoupled", "decoupled_light", "yolact" or "yolact_original".
        preset: Name of its configuration in ``solo_infer.config.model.PRESETS``; "" if it has its own beside it.
        filename: Its file's name, in the cache and at a mirror; unique in the manifest.
        sources: Where to have it, in order.
        sha256: The file's SHA-256 in hex, or its first digits, or "" where none was published.
        size: Bytes, None where not published.
        license: The license of the weights.
        commercial_use: Whether that license allows commercial use.
        mask_ap: Published COCO mask AP in percent, None where there is none.
        origin: Who trained it.
    """

    name: str
    family: str
    preset: str
    filename: str
    sources: tuple[Source, ...]
    sha256: str
    size: int | None
    license: str
    commercial_use: bool
    mask_ap: float | None
    origin: str

    @property
    def folder(self) -> Path | None:
        """The directory of a model that came with the package, None for one that must be fetched."""
        return next(
            (_package() / source.filename for source in self.sources if source.kind == "package"), None
        )


def manifest_path() -> Path:
    """Return the manifest's path: in the installed package, or above it in a source checkout."""
    installed = _package() / MANIFEST_NAME
    return installed if installed.is_file() else _package().parent / MANIFEST_NAME


def _package() -> Path:
    return Path(__file__).resolve().parent.parent


@cache
def load_manifest() -> dict[str, ManifestEntry]:
    """Return all published checkpoints by name, in the manifest's order."""
    content = json.loads(manifest_path().read_text(encoding="utf-8"))
    return {model["name"]: _entry(model) for model in content["models"]}


def _entry(values: dict[str, Any]) -> ManifestEntry:
    sources = tuple(Source(**source) for source in values["sources"])
    return ManifestEntry(**{**values, "sources": sources})


def available_models() -> list[str]:
    """Return the names that ``load_model`` knows."""
    return list(load_manifest())


def find_entry(name: str) -> ManifestEntry:
    """Return a published checkpoint by its name.

    Raises:
        UnknownModelError: There is none of that name; the message suggests similar ones.
    """
    manifest = load_manifest()
    if name not in manifest:
        raise UnknownModelError(unknown_model_message(name))
    return manifest[name]


def unknown_model_message(name: str) -> str:
    """Say that a name is unknown, with the names that come near it."""
    names = available_models()
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return (
        f"No model {name!r}: it is no file or directory here, no published model and no Hub repo id "
        f"(owner/name). {hint}Published models: {', '.join(names)}."
    )
