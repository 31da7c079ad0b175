"""Folder of a large run: a manifest, a plan, and Parquet files that are the units of work.

A Parquet file appears when it is complete, and holds the images that the plan lists for it. Its metadata
hold the fingerprint of the model. A run that was stopped therefore needs no other record: a new one does the
files that are missing.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from solo_infer._version import __version__
from solo_infer.config.categories import Categories
from solo_infer.errors import ClusterError, DataError, ResultError
from solo_infer.integrations.run_folder import LOCK, RunFolder, is_temporary
from solo_infer.results.formats.parquet import METADATA_KEY, SCHEMA_VERSION, pyarrow, to_table
from solo_infer.runtime.messages import quoted

MANIFEST = "_manifest.json"  # readers of Parquet skip names that start with "_"
PLAN = "_plan.jsonl"
_FORMAT = "solo-infer batch"
MAX_ATTEMPTS = 4  # to segment a part, whose workers may die of a lack of memory
_ATTEMPT = "_attempt-"
_READERS = 16  # threads that check the files of a run


@dataclass(frozen=True)
class Part:
    """Images that one Parquet file holds.

    Attributes:
        file: Name of the file.
        uris: Names of the images as entered.
    """

    file: str
    uris: tuple[str, ...]


@dataclass(frozen=True)
class RunManifest:
    """Facts of a run, which are the same for all of its files.

    Attributes:
        model: Name of the model.
        fingerprint: Fingerprint of the model with its settings.
        settings: JSON-ready settings of the call.
        categories: Classes of the model.
        root: Folder to which relative paths of images are relative.
        version: Version of solo_infer that has started the run.
    """

    model: str
    fingerprint: str
    settings: dict[str, Any]
    categories: Categories
    root: str
    version: str = field(default=__version__, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"format": _FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> RunManifest:
        """Return the manifest of ``to_dict``.

        Raises:
            DataError: The values are not those of a manifest.
        """
        try:
            if values["format"] != _FORMAT or values["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"version {quoted(values['schema_version'])}, expected {SCHEMA_VERSION}")
            names = ("model", "fingerprint", "settings", "root", "version")
            categories = Categories(**values["categories"])
            return cls(categories=categories, **{name: values[name] for name in names})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{MANIFEST} is not that of a run of this version of solo-infer ({error!r}): choose another "
                "folder."
            ) from error

    def source_of(self, uri: str) -> str:
        """Return the absolute path of an image that was named by a path, or the URI."""
        return uri if "://" in uri else os.path.join(self.root, os.path.expanduser(uri))

    def differences(self, other: RunManifest) -> list[str]:
        """Return texts about the settings and the model in which another manifest differs."""
        texts = [
            f"{name} {quoted(self.settings.get(name))} instead of {quoted(other.settings.get(name))}"
            for name in sorted({*self.settings, *other.settings})
            if self.settings.get(name) != other.settings.get(name)
        ]
        if not texts and self.fingerprint != other.fingerprint:
            texts.append(
                f"model {quoted(self.model)} ({self.fingerprint[:12]}) instead of {quoted(other.model)} "
                f"({other.fingerprint[:12]})"
            )
        return texts


class BatchOutput(RunFolder):
    """Folder, or URI of fsspec, that holds a run; see ``RunFolder``."""

    def file_paths(self, parts: Sequence[Part]) -> list[str]:
        """Return the paths of all files of a run on this machine, an empty list for a URI."""
        names = [MANIFEST, PLAN, LOCK, *(part.file for part in parts)]
        return [self.path_of(name) for name in names] if self.is_local else []

    # --- Manifest and plan

    def read_manifest(self) -> RunManifest | None:
        """Return the manifest, None if there is no run.

        Raises:
            DataError: The manifest cannot be read.
        """
        text = self.read(MANIFEST)
        return None if text is None else RunManifest.from_dict(_parse(MANIFEST, text))

    def read_plan(self) -> list[Part]:
        """Return the parts of the run in order, an empty list if there is no plan.

        Raises:
            DataError: The plan cannot be read.
        """
        text = self.read(PLAN)
        values = [] if text is None else [_parse(PLAN, line) for line in text.splitlines()]
        try:
            return [Part(str(value["file"]), tuple(map(str, value["uris"]))) for value in values]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{PLAN} in {self.location} is damaged ({error!r}): choose another folder."
            ) from error

    def begin(self, manifest: RunManifest, uris: Sequence[str]) -> list[Part]:
        """Start a run, or continue the one in the folder, and return its plan, which is empty at the start.

        A run that has written no file yet is replaced.

        Args:
            manifest: Facts of the run.
            uris: Names of the images.

        Raises:
            ResultError: The folder holds a run of another model or other settings, or other files.
            DataError: The manifest or the plan cannot be read.
        """
        files = sorted(name for name in self.names() if name.endswith(".parquet"))
        existing = self.read_manifest()
        if existing is None and files:
            raise ResultError(
                f"{self.location} holds {quoted(files[0])}, but no run ({MANIFEST}): choose another folder."
            )
        if existing is None or not files:
            self.write(MANIFEST, json.dumps(manifest.to_dict(), indent=2).encode())
            self.write(PLAN, b"")
            return []
        parts = self.read_plan()
        self._require_same(manifest, existing, [*(uri for part in parts for uri in part.uris), *uris])
        return parts

    def extend(self, parts: Sequence[Part], uris: Sequence[str], images_per_file: int) -> list[Part]:
        """Append images to the plan of a run, and return the plan.

        Args:
            parts: Plan.
            uris: Names of the images that it lacks.
            images_per_file: Number of them per file.

        Raises:
            ResultError: The plan cannot be written.
        """
        parts = list(parts)
        for start in range(0, len(uris), images_per_file):
            part = Part(f"part-{len(parts):06d}.parquet", tuple(uris[start : start + images_per_file]))
            parts.append(part)
        if uris:
            lines = (json.dumps({"file": part.file, "uris": part.uris}) for part in parts)
            self.write(PLAN, "".join(f"{line}\n" for line in lines).encode())
        return parts

    def _require_same(self, manifest: RunManifest, existing: RunManifest, uris: Iterable[str]) -> None:
        differences = manifest.differences(existing)
        if differences:
            raise ResultError(
                f"{self.location} holds the results of another run: {'; '.join(differences)}. One folder has "
                "the results of one model with one set of options: choose another folder or the same options."
            )
        has_relative = any(not (os.path.isabs(uri) or "://" in uri or uri.startswith("~")) for uri in uris)
        if manifest.root != existing.root and has_relative:
            raise ResultError(
                f"The run in {self.location} has paths relative to {quoted(existing.root, 200)}, and this "
                f"command runs in {quoted(manifest.root, 200)}: change to that folder, or choose another "
                "output."
            )

    # --- Parts

    def done(self, parts: Sequence[Part], manifest: RunManifest, *, retry_errors: bool = False) -> set[str]:
        """Return the names of the files that are complete.

        Args:
            parts: Plan.
            manifest: Facts of the run.
            retry_errors: Whether files with images that could not be read count as missing.

        Raises:
            ResultError: A file is that of another run.
        """
        names = self.names()
        existing = [part for part in parts if part.file in names]
        with ThreadPoolExecutor(_READERS) as pool:
            errors = pool.map(lambda part: self._count_errors(part, manifest), existing)
            return {
                part.file
                for part, count in zip(existing, errors, strict=True)
                if count is not None and not (retry_errors and count)
            }

    def _count_errors(self, part: Part, manifest: RunManifest) -> int | None:
        """Return the number of images of a file that have an error, None for an incomplete file."""
        pa = pyarrow()
        try:
            with self.open_file(part.file) as file:
                footer = pa.parquet.read_metadata(file)
            facts = json.loads((footer.metadata or {})[METADATA_KEY])
            fingerprint, errors = facts["fingerprint"], int(facts["errors"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None
        if fingerprint != manifest.fingerprint:
            raise ResultError(
                f"{self.path_of(part.file)} holds the results of another model: remove it, or choose another "
                "folder."
            )
        return errors if footer.num_rows == len(part.uris) else None

    def write_part(self, part: Part, rows: Sequence[dict[str, Any]], manifest: RunManifest) -> None:
        """Write the file of a part, which appears when it is complete.

        Raises:
            ResultError: The file cannot be written.
        """
        errors = sum(row["error"] is not None for row in rows)
        facts = json.dumps({**manifest.to_dict(), "errors": errors}, sort_keys=True)
        buffer = io.BytesIO()
        pyarrow().parquet.write_table(to_table(rows, facts.encode()), buffer, compression="zstd")
        self.write(part.file, buffer.getvalue())

    def begin_attempt(self, part: Part) -> None:
        """Count an attempt to segment a part. Ray repeats the part of a worker that dies without a limit.

        Raises:
            ClusterError: All attempts have failed.
            ResultError: The folder cannot be written.
        """
        for name in _attempts(part):
            if not self.exists(name):
                self.write(name, b"")
                return
        raise ClusterError(
            f"{MAX_ATTEMPTS} workers have died while they segmented the images of {part.file}, from "
            f"{quoted(part.uris[0], 200)} to {quoted(part.uris[-1], 200)}: check the memory of the machines, "
            "or leave out very large images. Files that are complete are kept."
        )

    def end_attempts(self, part: Part) -> None:
        """Forget the attempts to segment a part, which is done.

        Raises:
            ResultError: The folder cannot be written.
        """
        for name in itertools.takewhile(self.exists, _attempts(part)):
            self.remove(name)

    def remove_leftovers(self) -> None:
        """Remove the files of workers that were killed. No worker may be running.

        Raises:
            ResultError: The folder cannot be written.
        """
        for name in self.names():
            if name.startswith(_ATTEMPT) or is_temporary(name):
                self.remove(name)

    def read_rows(self, part: Part) -> Iterator[dict[str, Any]]:
        """Yield the rows of a part, of which only some are in memory.

        Raises:
            DataError: The file cannot be read.
        """
        pa = pyarrow()
        try:
            with self.open_file(part.file) as file:
                for batch in pa.parquet.ParquetFile(file).iter_batches(batch_size=64):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path_of(part.file)} cannot be read: {error}. Run batch again.") from error


def _attempts(part: Part) -> list[str]:
    stem = part.file.partition(".")[0]
    return [f"{_ATTEMPT}{stem}-{number}" for number in range(1, MAX_ATTEMPTS + 1)]


def _parse(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{name} is not JSON ({error}): choose the folder of another run.") from error
