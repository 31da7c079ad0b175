"""Class and mask scores of all grid cells, from the raw output of a SOLO network.

The library computes the masks of candidate cells only; tests compare them with these.
"""

import torch
import torch.nn.functional as F

from solo_infer.models.solo.scores import keep_local_maxima
from solo_infer.models.solo.solov2_head import SOLOv2Output


def dense_class_scores(output):
    """Return the class scores (N, cells, classes) of a raw output, zero where not a local maximum."""
    levels = [keep_local_maxima(logits.float().sigmoid()) for logits in output.class_logits]
    return torch.cat([scores.flatten(2).transpose(1, 2) for scores in levels], 1)


def dense_mask_scores(output):
    """Return the mask scores (N, cells, H/4, W/4) of a ``HeadOutput`` or ``SOLOv2Output``, of every cell."""
    if isinstance(output, SOLOv2Output):
        kernels = torch.cat([level.flatten(2) for level in output.kernels], 2)
        return torch.einsum("nec,nehw->nchw", kernels, output.mask_features).sigmoid()
    size = output.mask_logits[0][0].shape[-2:]  # the finest level has the size of all masks
    masks = []
    for maps in zip(*output.mask_logits, strict=True):
        scores = [
            F.interpolate(logits.float().sigmoid(), size=size, mode="bilinear", align_corners=False)
            for logits in maps
        ]
        if len(scores) == 2:  # of columns and of rows
            scores = [(scores[1][:, :, None] * scores[0][:, None]).flatten(1, 2)]
        masks.append(scores[0])
    return torch.cat(masks, 1)
