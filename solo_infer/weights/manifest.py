"""Published checkpoints, read from ``weights_manifest.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from solo_infer.config.suggestions import did_you_mean
from solo_infer.errors import UnknownModelError
from solo_infer.runtime.messages import quoted

MANIFEST_NAME = "weights_manifest.json"
DEFAULT_MODEL = "decoupled_r50_3x"
EMBEDDED_MODEL = "tiny"  # part of the package, needs no network


@dataclass(frozen=True)
class Source:
    """Source of a published file.

    Attributes:
        kind: "hub", "url" or "package".
        url: Address of the file, for "url".
        repo: Repo id (owner/name), for "hub".
        filename: Path of the file in the repo, for "hub"; path of the directory in this package, for
            "package".
        revision: Branch, tag or commit, for "hub".
    """

    kind: str
    url: str = ""
    repo: str = ""
    filename: str = ""
    revision: str = "main"

    @property
    def address(self) -> str:
        """URL of the file, or path of its directory if it is part of the package."""
        if self.kind == "package":
            return str(_package() / self.filename)
        if self.kind == "hub":
            return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{self.filename}"
        return self.url


@dataclass(frozen=True)
class ManifestEntry:
    """One published checkpoint.

    Attributes:
        name: Name that ``load_model`` takes.
        family: "solo", "decoupled", "decoupled_light", "solov2", "yolact" or "yolact_original".
        preset: Name of its configuration in ``solo_infer.config.PRESETS``, "" if it has its own config.json.
        filename: Name of the file in the cache and at a mirror; unique in the manifest.
        sources: Sources of the file, in the order of their use.
        sha256_prefix: First hex digits of the file's SHA-256, as published; "" if none were published.
        size: Size of the file in bytes, None if it was not published.
        license: License of the weights.
        commercial_use: Whether the license allows commercial use.
        mask_ap: Published COCO mask AP in percent, None if there is none. That of the embedded model is on
            156 photos of COCO val2017.
        origin: Organization or people who trained it.
        classes: Number of object classes.
    """

    name: str
    family: str
    preset: str
    filename: str
    sources: tuple[Source, ...]
    sha256_prefix: str
    size: int | None
    license: str
    commercial_use: bool
    mask_ap: float | None
    origin: str
    classes: int = 80

    @property
    def folder(self) -> Path | None:
        """Directory of a model that is part of the package, None for one that must be fetched."""
        return next(
            (_package() / source.filename for source in self.sources if source.kind == "package"), None
        )


def size_in_bytes(entry: ManifestEntry) -> int | None:
    """Return the size of a published checkpoint, None if it is not known."""
    if entry.folder is None:
        return entry.size
    return sum(path.stat().st_size for path in entry.folder.iterdir())


def manifest_path() -> Path:
    """Return the path of the manifest: in the installed package, or above it in a source checkout."""
    installed = _package() / MANIFEST_NAME
    return installed if installed.is_file() else _package().parent / MANIFEST_NAME


def _package() -> Path:
    return Path(__file__).resolve().parent.parent


@cache
def load_manifest() -> dict[str, ManifestEntry]:
    """Return all published checkpoints by name, in the order of the manifest."""
    content = json.loads(manifest_path().read_text(encoding="utf-8"))
    return {model["name"]: _entry(model) for model in content["models"]}


def _entry(values: dict[str, Any]) -> ManifestEntry:
    sources = tuple(Source(**source) for source in values["sources"])
    return ManifestEntry(**{**values, "sources": sources})


def available_models() -> list[str]:
    """Return the names of the published models."""
    return list(load_manifest())


def find_entry(name: str) -> ManifestEntry:
    """Return a published checkpoint by name.

    Raises:
        UnknownModelError: There is none of that name; the message suggests similar names.
    """
    manifest = load_manifest()
    if name not in manifest:
        raise UnknownModelError(unknown_model_message(name))
    return manifest[name]


def unknown_model_message(name: str) -> str:
    """Return the error message for an unknown name, with similar names."""
    names = available_models()
    return (
        f"No model {quoted(name, 100)}: expected a file, a directory, a published model or a Hub repo id "
        f"(owner/name). {did_you_mean(name, names)}Published models: {', '.join(names)}."
    )
