"""Checkpoint files of every layout, and crafted ones, for tests of their readers."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import copy_of_built
from torch import Tensor
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from solo_infer import SOLO
from solo_infer.config import ArchitectureConfig, ModelConfig
from solo_infer.models import build_network
from solo_infer.models.backbones import resnet
from solo_infer.models.backbones.resnet import ResNet
from solo_infer.models.base import SegmentationNetwork
from solo_infer.weights.key_mapping import mmdet_name
from solo_infer.weights.pickles.reader import LEGACY_MAGIC, LEGACY_PROTOCOL

LAYOUTS = ("mmdet2_legacy", "mmdet2_zip", "mmdet3", "mmdet3_published", "bare")


@cache
def _empty_network_state(architecture: ArchitectureConfig) -> dict[str, Tensor]:
    return build_network(architecture, device="meta").state_dict()


def empty_state_dict(architecture: ArchitectureConfig) -> dict[str, Tensor]:
    """Return the state dict of a network, all zeros that take no memory."""
    expected = _empty_network_state(architecture)
    return {name: torch.zeros((), dtype=item.dtype).expand(item.shape) for name, item in expected.items()}


def in_mmdet_names(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return a state dict as mmdet saves it, including the version metadata of its modules."""
    renamed = OrderedDict((mmdet_name(name), tensor) for name, tensor in state_dict.items())
    renamed._metadata = OrderedDict({"": {"version": 1}, "backbone.bn1": {"version": 2}})  # type: ignore[attr-defined]
    return renamed


def in_authors_names(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return a state dict in the names of the authors' code (mmdet 1.x)."""
    prefix = "d" if any("conv_mask_list_x" in name for name in state_dict) else ""
    prefixes = {
        "mask_head.mask_convs": "bbox_head.ins_convs",
        "mask_head.cls_convs": "bbox_head.cate_convs",
        "mask_head.conv_mask_list": f"bbox_head.{prefix}solo_ins_list",
        "mask_head.conv_cls": f"bbox_head.{prefix}solo_cate",
        "mask_head.kernel_convs": "bbox_head.kernel_convs",
        "mask_head.conv_kernel": "bbox_head.solo_kernel",
        "mask_head.mask_feature_head.conv_pred": "mask_feat_head.conv_pred.0",
        "mask_head.mask_feature_head": "mask_feat_head",
    }
    renamed = OrderedDict()
    for name, tensor in in_mmdet_names(state_dict).items():
        ours = next((start for start in prefixes if name.startswith(start)), "")
        renamed[prefixes.get(ours, "") + name.removeprefix(ours)] = tensor
    return renamed


def foreign_object(monkeypatch: pytest.MonkeyPatch, module: str, name: str, **state: Any) -> Any:
    """Return an object of a class that can be imported only in this test."""
    foreign_class = type(name, (), {"__module__": module})
    for parent in (module.rsplit(".", up)[0] for up in range(module.count(".") + 1)):
        monkeypatch.setitem(sys.modules, parent, type(sys)(parent))
    setattr(sys.modules[module], name, foreign_class)
    instance = foreign_class()
    instance.__dict__.update(state)
    return instance


def contents_of(
    layout: str, state_dict: Mapping[str, Tensor], names: Any, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Return the contents of a file of one of ``LAYOUTS``."""
    tensors = in_mmdet_names(state_dict)
    if layout == "bare":
        return tensors
    if layout.startswith("mmdet2"):
        content = {"meta": {"CLASSES": names, "epoch": 12, "hook_msgs": {}}, "state_dict": tensors}
    else:
        meta = {"cfg": "model = dict()", "dataset_meta": {"classes": names, "palette": [(1, 2, 3)]}}
        content = {"meta": meta, "state_dict": tensors}
    if layout in ("mmdet2_zip", "mmdet3"):
        group = {"lr": 0.01, "params": [0, 1]}
        content["optimizer"] = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [group]}
    if layout == "mmdet3":
        module, name = "mmengine.logging.history_buffer", "HistoryBuffer"
        history = foreign_object(monkeypatch, module, name, _log_history=torch.ones(2).numpy())
        content["message_hub"] = {"log_scalars": {"train/lr": history}, "runtime_info": OrderedDict(iter=4)}
    return content


def write_layout(
    path: Path,
    layout: str,
    state_dict: Mapping[str, Tensor],
    names: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Write a checkpoint in one of ``LAYOUTS``."""
    content = contents_of(layout, state_dict, names, monkeypatch)
    as_zip = layout in ("mmdet2_zip", "mmdet3")
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    return path


@contextmanager
def narrow_backbones() -> Iterator[None]:
    """Make every ResNet five times smaller, with the same tensor names, so that files are written quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResNet, "__init__", _init_narrow)
        yield


def _init_narrow(self: ResNet, name: str) -> None:
    blocks = list(resnet.RESNETS[name].blocks)
    TorchvisionResNet.__init__(self, Bottleneck, blocks, num_classes=1, width_per_group=4)
    del self.avgpool, self.fc
    self.out_channels = (256, 512, 1024, 2048)


def random_model(config: ModelConfig, seed: int = 7) -> SOLO:
    """Return a model with random weights."""
    return SOLO(config, copy_of_built(_random_network, config.architecture, seed))


def _random_network(architecture: ArchitectureConfig, seed: int) -> SegmentationNetwork:
    torch.manual_seed(seed)
    return build_network(architecture).requires_grad_(False)


def check_same_model(model: SOLO, expected: SOLO) -> None:
    """Check that two models have the same configuration and bit-identical weights."""
    weights, expected_weights = model.network.state_dict(), expected.network.state_dict()
    assert list(weights) == list(expected_weights)
    assert not [name for name in weights if not torch.equal(weights[name], expected_weights[name])]
    assert model.config == expected.config


# --- Crafted files: the contents are a pickle of opcodes


def dumped(value: Any) -> bytes:
    """Return a pickle of the protocol that PyTorch uses."""
    return pickle.dumps(value, protocol=2)


def legacy_file(contents: bytes, storages: Mapping[str, bytes] | None = None, keys: Any = None) -> bytes:
    """Return a file of the older format; storages hold raw float32 data."""
    storages = storages or {}
    system = {"protocol_version": LEGACY_PROTOCOL, "little_endian": True, "type_sizes": {}}
    head = dumped(LEGACY_MAGIC) + dumped(LEGACY_PROTOCOL) + dumped(system)
    data = b"".join((len(raw) // 4).to_bytes(8, "little") + raw for raw in storages.values())
    return head + contents + dumped(list(storages) if keys is None else keys) + data


def zip_file(
    contents: bytes, storages: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """Return a file of the zip format."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("model/data.pkl", contents)
        archive.writestr("model/byteorder", "little")
        for key, raw in (storages or {}).items():
            archive.writestr(f"model/data/{key}", raw)
        archive.writestr("model/version", "3\n")
    return stream.getvalue()


FORMATS = {"legacy": legacy_file, "zip": zip_file}


def text(value: str) -> bytes:
    """Return opcodes that push a string."""
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def number(value: int) -> bytes:
    """Return opcodes that push an integer of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(*values: int) -> bytes:
    """Return opcodes that push a tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 4, storage_type: str = "torch\nFloatStorage") -> bytes:
    """Return opcodes that push a storage."""
    return (
        b"("
        + text("storage")
        + f"c{storage_type}\n".encode()
        + text(key)
        + text("cpu")
        + number(count)
        + b"tQ"
    )


def tensor(
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    source: bytes | None = None,
) -> bytes:
    """Return opcodes that push a tensor."""
    source = storage() if source is None else source
    shape = numbers(*size) + numbers(*stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + source + number(offset) + shape + b"\x89}tR"
