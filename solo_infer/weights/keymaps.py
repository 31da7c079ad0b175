"""How the tensors of other people's checkpoints are called here.

Ours are mmdet 3.x's names, except for the pyramid, which is torchvision's. The authors' code (mmdet 1.x)
had other names in the head; they map one to one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_Rules = tuple[tuple[re.Pattern[str], str], ...]

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")

_AUTHORS: _Rules = (
    (re.compile(r"^bbox_head\."), "mask_head."),
    (re.compile(r"^mask_head\.ins_convs(?=[._])"), "mask_head.mask_convs"),
    (re.compile(r"^mask_head\.cate_convs\."), "mask_head.cls_convs."),
    (re.compile(r"^mask_head\.d?solo_ins_list(?=[._])"), "mask_head.conv_mask_list"),
    (re.compile(r"^mask_head\.d?solo_cate\."), "mask_head.conv_cls."),
)

_PYRAMID: _Rules = (
    (re.compile(r"^neck\.lateral_convs\.(\d+)\.conv\."), r"neck.inner_blocks.\1.0."),
    (re.compile(r"^neck\.fpn_convs\.(\d+)\.conv\."), r"neck.layer_blocks.\1.0."),
)

_PYRAMID_BACK: _Rules = (
    (re.compile(r"^neck\.inner_blocks\.(\d+)\.0\."), r"neck.lateral_convs.\1.conv."),
    (re.compile(r"^neck\.layer_blocks\.(\d+)\.0\."), r"neck.fpn_convs.\1.conv."),
)

_AUTHORS_HEAD = re.compile(r"^bbox_head\.(?:ins_convs|cate_convs|d?solo_)")


def our_names(names: Iterable[str]) -> dict[str, str]:
    """Return {name in the file: our name}, for files of mmdet 2.x and 3.x, of the authors, and our own."""
    names = list(names)
    bare = {name: _WRAPPERS.sub("", name) for name in names}
    rules = _PYRAMID
    if any(_AUTHORS_HEAD.match(name) for name in bare.values()):
        rules = _AUTHORS + _PYRAMID
    return {name: _rename(plain, rules) for name, plain in bare.items()}


def mmdet_name(name: str) -> str:
    """Return mmdet's name of one of our tensors."""
    return _rename(name, _PYRAMID_BACK)


def _rename(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
