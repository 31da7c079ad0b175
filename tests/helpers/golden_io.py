"""Reading of golden files and comparison of results with them (numpy only)."""

import os

import numpy as np

# Set this variable to compare the slow photos and networks too, which takes minutes.
ALL_GOLDENS = bool(os.environ.get("SOLO_INFER_ALL_GOLDENS"))

MAX_PER_IMAGE = 100  # in every test configuration
FINAL_THRESHOLD = 0.05  # SOLO's filter_thr and YOLACT's score_thr


def rle_decode(counts, height, width):
    """Decode one COCO compressed RLE.

    Args:
        counts (bytes): The ``counts`` string.
        height (int): px.
        width (int): px.

    Returns:
        np.ndarray: (height, width) bool.
    """
    runs, value, shift = [], 0, 0
    for byte in counts:
        byte -= 48
        value |= (byte & 31) << shift
        shift += 5
        if not byte & 32:
            if byte & 16:
                value -= 1 << shift
            if len(runs) > 2:
                value += runs[-2]
            runs.append(value)
            value, shift = 0, 0
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def pack_rles(counts):
    """Join RLE strings: (bytes as uint8, n + 1 offsets)."""
    offsets = np.cumsum([0] + [len(c) for c in counts])
    return np.frombuffer(b"".join(counts), np.uint8), offsets


def masks(golden, image=0):
    """Return the final masks of an image of a golden, (n, h, w) bool."""
    height, width = golden[f"img{image}_ori_shape"]
    text = golden[f"img{image}_rle_counts"].tobytes()
    ends = golden[f"img{image}_rle_offsets"]
    decoded = [rle_decode(text[a:b], height, width) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return np.stack(decoded) if decoded else np.zeros((0, height, width), bool)


def compare(golden, image, scores, labels, predicted_masks, tolerance=1e-4):
    """Match detections with those of a golden file, in any order of ties.

    Each golden detection takes, among the unused detections of its label with
    a score within ``tolerance``, the one whose mask has the greatest IoU.

    Args:
        golden (dict): Contents of a golden file.
        image (int): Index of the image in the batch of the golden file.
        scores (np.ndarray): (n,) float.
        labels (np.ndarray): (n,) int.
        predicted_masks (np.ndarray): (n, h, w) bool, at the original size.
        tolerance (float): Greatest score difference of a match.

    Returns:
        dict: ``missing`` and ``extra`` (golden and predicted detections
        without a partner), ``edge`` (detections without a partner whose score
        is within ``tolerance`` of the last score of a full list or of the
        final score threshold, where rounding may add or drop them; not counted
        as missing or extra), ``moved`` (number of matches at different ranks),
        ``score_diff`` (greatest), ``mask_iou`` (least) and ``mask_pixels``
        (greatest number of different pixels) over the matches.
    """
    true_scores = golden[f"img{image}_scores"]
    true_labels = golden[f"img{image}_labels"]
    true_masks = masks(golden, image)
    full = len(true_scores) == MAX_PER_IMAGE
    limit = true_scores[-1] if full else FINAL_THRESHOLD
    lost = np.ones(len(true_scores), bool)
    unused = np.ones(len(scores), bool)
    moved, diffs, ious, pixels = 0, [0.0], [1.0], [0]
    for rank, (score, label) in enumerate(zip(true_scores, true_labels, strict=True)):
        near = np.abs(scores - score) <= tolerance
        options = np.nonzero(unused & (labels == label) & near)[0]
        if len(options) == 0:
            continue
        both = (predicted_masks[options] & true_masks[rank]).sum(axis=(1, 2))
        either = (predicted_masks[options] | true_masks[rank]).sum(axis=(1, 2))
        iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
        best = int(iou.argmax())
        unused[options[best]] = lost[rank] = False
        moved += int(options[best] != rank)
        diffs.append(float(np.abs(scores[options[best]] - score)))
        ious.append(float(iou[best]))
        pixels.append(int(either[best] - both[best]))
    missing = lost & (np.abs(true_scores - limit) > tolerance)
    extra = unused & (np.abs(scores - limit) > tolerance)
    return dict(
        missing=int(missing.sum()),
        extra=int(extra.sum()),
        edge=int((lost & ~missing).sum() + (unused & ~extra).sum()),
        moved=moved,
        score_diff=max(diffs),
        mask_iou=min(ious),
        mask_pixels=max(pixels),
    )
