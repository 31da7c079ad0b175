"""The manifest of the published checkpoints is consistent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from solo_infer.config import PRESETS
from solo_infer.config.solo import HEADS
from solo_infer.errors import UnknownModelError
from solo_infer.weights import manifest
from solo_infer.weights.manifest import (
    DEFAULT_MODEL,
    EMBEDDED_MODEL,
    Source,
    available_models,
    find_entry,
    load_manifest,
    manifest_path,
    unknown_model_message,
)

ENTRIES = [entry for entry in load_manifest().values() if entry.name != EMBEDDED_MODEL]
OPENMMLAB = [entry for entry in ENTRIES if entry.origin == "OpenMMLab"]
AUTHORS = [entry for entry in ENTRIES if entry.origin == "SOLO authors"]
YOLACT_AUTHOR = [entry for entry in ENTRIES if entry.origin == "YOLACT author"]
every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)

# Published mask AP in percent, and SHA-256 prefix.
PUBLISHED = {
    "solo_r50_1x": (33.1, "2290a6b8"),
    "solo_r50_3x": (35.9, "11d224d7"),
    "decoupled_r50_1x": (33.9, "6337c589"),
    "decoupled_r50_3x": (36.7, "7b3301ec"),
    "decoupled_light_r50_3x": (32.9, "e70e226f"),
    "solov2_r50_1x": (34.8, "a357fa23"),
    "solov2_r50_3x": (37.5, "fed092d4"),
    "solov2_r101_3x": (39.1, "c559a076"),
    "solov2_r101_dcn_3x": (41.2, "16c966cb"),
    "solov2_x101_dcn_3x": (42.4, "aef41095"),
    "solov2_light_r18_3x": (29.7, "75fa355b"),
    "solov2_light_r34_3x": (31.9, "e51659d3"),
    "solov2_light_r50_3x": (33.7, "c93a6074"),
    "authors_solo_r50_1x": (32.9, ""),
    "authors_solo_r50_3x": (35.8, ""),
    "authors_solo_r101_3x": (37.1, ""),
    "authors_decoupled_r50_1x": (33.9, ""),
    "authors_decoupled_r50_3x": (36.4, ""),
    "authors_decoupled_r101_3x": (37.9, ""),
    "authors_decoupled_light_r50_3x": (33.0, ""),
    "authors_decoupled_light_dcn_r50_3x": (35.0, ""),
    "authors_solov2_r50_1x": (34.8, "17e10fe2198665c573b363c504a1547e6a917e22fa94e926d7f8646432d8a506"),
    "authors_solov2_r50_3x": (37.5, "659975203266ca2d00167790796fde961d09930c01124377d3ee3a8be3a3a660"),
    "authors_solov2_r101_3x": (39.1, "7126c25eee6575ef405fc689b46510493b4dc991ebf758a12645109ed906c55f"),
    "authors_solov2_r101_dcn_3x": (41.4, "3cd436711e57047bf00a733fb606262097b4eff7121d3251305aeab3ccc249c5"),
    "authors_solov2_x101_dcn_3x": (42.4, "e0ef1edcb04d4e468b5bd7cc63d8de4d8267402ee180679c6c0ddbeda51f7d46"),
    "authors_solov2_light_448_r18_3x": (
        29.6,
        "4f89669be79143566e02bdc51428fc10c83a3974a53326fcae1cf7e336dc6997",
    ),
    "authors_solov2_light_448_r34_3x": (
        32.0,
        "9243f7b9e64e4ae0a77517fed392a7f170ab3e5cad7028caa7b062c34d87d3c5",
    ),
    "authors_solov2_light_448_r50_3x": (33.7, ""),
    "authors_solov2_light_512_dcn_r50_3x": (36.4, ""),
    "yolact_r50": (29.0, "f38d58df"),
    "yolact_r50_8x8": (28.4, "ca34f5db"),
    "yolact_r101": (30.4, "4cbe9101"),
    "authors_yolact_r50": (28.2, ""),
    "authors_yolact_r101": (29.8, ""),
    "authors_yolact_r101_700": (31.2, ""),
}


def test_names_and_their_order() -> None:
    assert available_models() == list(load_manifest()) == [*PUBLISHED, EMBEDDED_MODEL]
    assert {entry.name: (entry.mask_ap, entry.sha256_prefix) for entry in ENTRIES} == PUBLISHED
    assert (len(OPENMMLAB), len(AUTHORS), len(YOLACT_AUTHOR)) == (16, 17, 3)
    assert DEFAULT_MODEL in load_manifest()
    assert find_entry(DEFAULT_MODEL).commercial_use


def test_file_names_are_unique_and_portable() -> None:
    names = [entry.filename.lower() for entry in ENTRIES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.-]+\.pth", name) for name in names)


@every_entry
def test_entry_is_consistent(entry: manifest.ManifestEntry) -> None:
    architecture = PRESETS[entry.preset].architecture
    assert entry.family == architecture.name in (*HEADS, "yolact", "yolact_original")
    depth = re.search(r"_([rx]\d+)", entry.name)
    prefix = "resnext" if depth and depth[1].startswith("x") else "resnet"
    assert depth is not None and architecture.backbone.startswith(prefix + depth[1][1:])
    assert entry.family.split("_")[0] in entry.name
    assert re.fullmatch(r"(?:[0-9a-f]{8,64})?", entry.sha256_prefix)
    assert entry.size is None or entry.size > 10_000_000
    assert entry.license and entry.sources


@pytest.mark.parametrize("entry", OPENMMLAB, ids=lambda entry: entry.name)
def test_entry_of_openmmlab(entry: manifest.ManifestEntry) -> None:
    assert entry.filename.endswith(f"-{entry.sha256_prefix}.pth")
    (source,) = entry.sources
    address = urlsplit(source.address)
    assert (source.kind, address.scheme, address.hostname) == ("url", "https", "download.openmmlab.com")
    folder = re.split("_202[012]", entry.filename)[0]
    project = entry.family if entry.family in ("yolact", "solov2") else "solo"
    assert address.path == f"/mmdetection/v2.0/{project}/{folder}/{entry.filename}"
    assert entry.license == "Apache-2.0" and entry.commercial_use


@pytest.mark.parametrize("entry", AUTHORS, ids=lambda entry: entry.name)
def test_entry_of_the_authors(entry: manifest.ManifestEntry) -> None:
    stem = entry.filename.removesuffix(".pth").lower()
    assert entry.name == f"authors_{stem.replace('decoupled_solo', 'decoupled')}"
    (source,) = entry.sources
    assert source == Source("hub", repo="xinlongwang/SOLO", filename=entry.filename)
    assert source.address == f"https://huggingface.co/xinlongwang/SOLO/resolve/main/{entry.filename}"
    assert not entry.commercial_use and "non-commercial" in entry.license


@pytest.mark.parametrize("entry", YOLACT_AUTHOR, ids=lambda entry: entry.name)
def test_entry_of_the_yolact_author(entry: manifest.ManifestEntry) -> None:
    (source,) = entry.sources
    suffix = entry.filename.split("_")[1]
    assert source == Source("hub", repo=f"dbolya/yolact-{suffix}", filename=entry.filename)
    assert entry.commercial_use and entry.license == "MIT"
    side = 700 if suffix == "im700" else 550
    assert PRESETS[entry.preset].preprocessing.short_side == side


def test_entry_is_found_by_name() -> None:
    assert find_entry("solo_r50_3x") is load_manifest()["solo_r50_3x"]
    with pytest.raises(UnknownModelError, match="Did you mean 'solo_r50_3x' or"):
        find_entry("solo_r50_3")


def test_unknown_name_lists_all_names() -> None:
    message = unknown_model_message("no such thing")
    assert message.startswith(
        "No model 'no such thing': expected a file, a directory, a published model or a"
    )
    assert "Did you mean" not in message
    assert message.endswith(f"Published models: {', '.join(PUBLISHED)}, tiny.")
    assert unknown_model_message("SOLO_R50_3X").count("Did you mean 'solo_r50_3x'") == 1


def test_manifest_is_found_in_a_checkout_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(manifest_path().read_text(encoding="utf-8"))
    assert content["format"] == "solo_infer_manifest/2"
    module = tmp_path / "solo_infer" / "weights" / "manifest.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(manifest, "__file__", str(module))
    assert manifest_path() == tmp_path / "weights_manifest.json"
    (tmp_path / "solo_infer" / "weights_manifest.json").touch()
    assert manifest_path() == tmp_path / "solo_infer" / "weights_manifest.json"


def test_fields_of_a_source_have_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(manifest_path().read_text(encoding="utf-8"))
    content["models"] = content["models"][:1]
    content["models"][0]["sources"] = [
        {"kind": "hub", "repo": "a/b", "filename": "c.pth", "revision": "v1"},
        {"kind": "url", "url": "https://example.org/c.pth"},
    ]
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(manifest, "manifest_path", lambda: path)
    load_manifest.cache_clear()
    try:
        (entry,) = load_manifest().values()
    finally:
        load_manifest.cache_clear()
    assert entry.sources == (
        Source("hub", repo="a/b", filename="c.pth", revision="v1"),
        Source("url", url="https://example.org/c.pth"),
    )
    assert entry.sources[0].address == "https://huggingface.co/a/b/resolve/v1/c.pth"
