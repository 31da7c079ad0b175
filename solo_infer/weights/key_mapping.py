"""How the tensors of other people's checkpoints are called here.

Ours are mmdet 3.x's names, except for the pyramid, which is torchvision's. The SOLO authors' code (mmdet
1.x) had other names in the head, YOLACT's author has his own everywhere; they map one to one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import Tensor

from solo_infer.models.yolact.network import ANCHORS_PER_CELL

_Rules = tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")

_AUTHORS: _Rules = (
    (re.compile(r"^bbox_head\."), "mask_head."),
    (re.compile(r"^mask_head\.ins_convs(?=[._])"), "mask_head.mask_convs"),
    (re.compile(r"^mask_head\.cate_convs\."), "mask_head.cls_convs."),
    (re.compile(r"^mask_head\.d?solo_ins_list(?=[._])"), "mask_head.conv_mask_list"),
    (re.compile(r"^mask_head\.d?solo_cate\."), "mask_head.conv_cls."),
)

# The author numbers the layers of his pyramid from the coarsest.
_AUTHORS_YOLACT: _Rules = (
    (re.compile(r"^backbone\.layers\.(\d)\."), lambda found: f"backbone.layer{int(found[1]) + 1}."),
    (re.compile(r"^fpn\.lat_layers\.([012])\."), lambda found: f"neck.inner_blocks.{2 - int(found[1])}.0."),
    (re.compile(r"^fpn\.pred_layers\.([012])\."), lambda found: f"neck.layer_blocks.{2 - int(found[1])}.0."),
    (
        re.compile(r"^fpn\.downsample_layers\.([01])\."),
        lambda found: f"neck.layer_blocks.{3 + int(found[1])}.0.",
    ),
    (re.compile(r"^prediction_layers\.0\.upfeature\.0\."), "bbox_head.head_convs.0.conv."),
    (re.compile(r"^prediction_layers\.0\.conf_layer\."), "bbox_head.conv_cls."),
    (re.compile(r"^prediction_layers\.0\.bbox_layer\."), "bbox_head.conv_reg."),
    (re.compile(r"^prediction_layers\.0\.mask_layer\."), "bbox_head.conv_coeff."),
    (re.compile(r"^proto_net\."), "mask_head.protonet."),
    (re.compile(r"^semantic_seg_conv\."), "mask_head.segm_branch.segm_conv."),
)
# What files of his first version hold besides: the body once more, and layers of the pyramid that were cut.
_AUTHORS_LEFTOVERS = re.compile(r"^(?:backbone\.layer\d\.|fpn\.downsample_layers\.[2-9]\.)")
_AUTHORS_YOLACT_HEAD = re.compile(r"^(?:prediction_layers\.|proto_net\.|fpn\.lat_layers\.)")

_PYRAMID: _Rules = (
    (re.compile(r"^segm_head\.(?=segm_conv\.)"), "mask_head.segm_branch."),
    (re.compile(r"^neck\.lateral_convs\.(\d+)\.conv\."), r"neck.inner_blocks.\1.0."),
    (re.compile(r"^neck\.fpn_convs\.(\d+)\.conv\."), r"neck.layer_blocks.\1.0."),
)

_PYRAMID_BACK: _Rules = (
    (re.compile(r"^neck\.inner_blocks\.(\d+)\.0\."), r"neck.lateral_convs.\1.conv."),
    (re.compile(r"^neck\.layer_blocks\.(\d+)\.0\."), r"neck.fpn_convs.\1.conv."),
)

_AUTHORS_HEAD = re.compile(r"^bbox_head\.(?:ins_convs|cate_convs|d?solo_)")


def map_keys(names: Iterable[str]) -> dict[str, str]:
    """Return {name in the file: our name}, for files of mmdet 2.x and 3.x, of the authors, and our own.

    What only older files of YOLACT's author hold, and no network reads, is left out.
    """
    bare = {name: _WRAPPERS.sub("", name) for name in names}
    if is_original_yolact(bare.values()):
        kept = {name: plain for name, plain in bare.items() if not _AUTHORS_LEFTOVERS.match(plain)}
        return {name: _rename(plain, _AUTHORS_YOLACT) for name, plain in kept.items()}
    rules = _PYRAMID
    if any(_AUTHORS_HEAD.match(name) for name in bare.values()):
        rules = _AUTHORS + _PYRAMID
    return {name: _rename(plain, rules) for name, plain in bare.items()}


def is_original_yolact(names: Iterable[str]) -> bool:
    """Return whether a file's tensors are named as YOLACT's author names them."""
    return any(_AUTHORS_YOLACT_HEAD.match(_WRAPPERS.sub("", name)) for name in names)


def background_last(tensor: Tensor) -> Tensor:
    """Return the weight or bias of his class layer, whose background comes first, in our order of classes.

    One whose rows are no multiple of the anchors of a place is returned as it is: it fits nothing.
    """
    if tensor.ndim == 0 or len(tensor) % ANCHORS_PER_CELL:
        return tensor
    return tensor.unflatten(0, (ANCHORS_PER_CELL, -1)).roll(-1, dims=1).flatten(0, 1)


def mmdet_name(name: str) -> str:
    """Return mmdet's name of one of our tensors."""
    return _rename(name, _PYRAMID_BACK)


def _rename(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
