"""Errors for unknown keyword arguments, which name the keyword to use.

The tables list keywords of other libraries for instance segmentation and detection.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from solo_infer.config.suggestions import closest, did_you_mean
from solo_infer.config.validation import bounded_repr
from solo_infer.errors import KeywordError

F = TypeVar("F", bound=Callable[..., Any])

SCORE_KEYWORDS = (
    *("conf", "conf_thr", "conf_thres", "conf_threshold", "confidence", "confidence_threshold", "min_conf"),
    *("min_confidence", "threshold", "thr", "thresh", "score", "score_thr", "score_thres", "score_thresh"),
    *("score_threshold", "pred_score_thr", "box_threshold", "min_score_thr", "minimum_score"),
)
SIZE_KEYWORDS = (
    *("imgsz", "img_size", "image_size", "img_scale", "imsize", "size", "input_shape", "resolution", "scale"),
    *("shape", "network_size", "max_size", "min_size"),
)
COUNT_KEYWORDS = (
    *("max_det", "max_dets", "max_detections", "max_num", "max_per_img", "max_per_image", "max_instances"),
    *("top_k", "topk", "keep_top_k", "detections_per_img"),
)
IOU_KEYWORDS = (
    *("iou", "iou_thr", "iou_thres", "iou_thresh", "iou_threshold", "nms", "nms_thr", "nms_thres"),
    *("nms_iou", "nms_iou_thr", "nms_threshold", "nms_thresh"),
)
AGNOSTIC_KEYWORDS = (
    *("agnostic", "agnostic_nms", "class_agnostic", "class_agnostic_nms", "cross_class_nms"),
    *("postprocess_class_agnostic",),
)
CLASS_KEYWORDS = ("classes", "class_ids", "class_names", "class_id", "cls", "filter_classes", "labels")
SAVE_KEYWORDS = (
    *("save", "save_dir", "save_path", "save_img", "save_image", "output", "output_dir", "out", "out_dir"),
    *("out_file", "project", "exist_ok", "save_vis", "no_save_vis"),
)
EXPORT_KEYWORDS = ("save_txt", "save_json", "save_pred", "no_save_pred", "save_conf", "save_crop")
SHOW_KEYWORDS = ("show", "view", "view_img", "display", "visualize", "plot", "draw", "render", "return_vis")
HALF_KEYWORDS = ("half", "fp16", "bf16", "dtype", "torch_dtype", "precision", "amp", "int8")
IMAGE_KEYWORDS = (
    *("img", "imgs", "image", "images", "im", "input", "inputs", "frame", "frames", "file", "files", "path"),
    *("paths", "x", "photo", "photos", "pixel_values"),
)
NAME_KEYWORDS = (
    *("model", "model_name", "model_path", "model_id", "name", "path", "file", "filename", "weights"),
    *("weight", "checkpoint", "checkpoint_path", "checkpoint_file", "ckpt", "pretrained", "repo_id"),
    *("pretrained_model_name_or_path",),
)


def _table(*rows: tuple[tuple[str, ...], str]) -> dict[str, str]:
    return {name: hint for names, hint in rows for name in names}


_AT_THE_CALL = "Load the model without it, and pass {ours} at the call: model(image, {ours})."
_THRESHOLDS = "Use thresholds=dataclasses.replace(model.config.thresholds, {fields})."

CALL_KEYWORDS = _table(
    (SCORE_KEYWORDS, "Use min_score=..., the lowest score of the instances that are returned."),
    (SIZE_KEYWORDS, "Use input_size=..., one number or (height, width) in pixels, multiples of 32."),
    (COUNT_KEYWORDS, _THRESHOLDS.format(fields="max_per_image=...")),
    (IOU_KEYWORDS, _THRESHOLDS.format(fields='nms="greedy", nms_iou=...') + " YOLACT has iou_thr there."),
    (AGNOSTIC_KEYWORDS, "Use across_classes=True."),
    (CLASS_KEYWORDS, "Use model.only([...])(image), or result.filter(classes=[...])."),
    (("mask_thr", "mask_threshold", "mask_thres"), _THRESHOLDS.format(fields="mask_thr=...")),
    (("stream", "generator"), "Use model.stream(source), which yields one result after the other."),
    (("batch", "bs"), "Use batch_size=...."),
    (("device", "device_map", "gpu", "cuda"), 'Use model.to("cuda"), or device=... of from_pretrained.'),
    (HALF_KEYWORDS, 'Use model.to(dtype="float16"), or dtype=... of from_pretrained.'),
    (("verbose", "progress", "progress_bar", "quiet", "show_progress"), "Remove it: a call prints nothing."),
    (SAVE_KEYWORDS, 'Use result.save("drawing.png") afterwards.'),
    (EXPORT_KEYWORDS, "Use result.to_json() or result.to_coco(image_id) afterwards."),
    (SHOW_KEYWORDS, "Use result.plot() afterwards, a PIL image with the method show()."),
    (("retina_masks",), "Remove it: masks always have the size of the image."),
    (("augment", "tta"), "Remove it: test-time augmentation does not exist here."),
    (("bgr", "rgb", "channel_order", "color_space", "mode"), 'Use color="bgr" or color="rgb".'),
    (IMAGE_KEYWORDS, "Use source=..., or pass the image as the first argument."),
)
PRETRAINED_KEYWORDS = _table(
    (NAME_KEYWORDS, "Use name_or_path=..., or pass the name or the path as the first argument."),
    (("device_map", "gpu", "cuda"), "Use device=...."),
    (("half", "fp16", "bf16", "torch_dtype", "precision", "amp"), 'Use dtype="float16" or "bfloat16".'),
    (("local_files_only", "force_offline"), "Use offline=True."),
    (("cache_dir", "cache", "model_dir"), "Set the environment variable SOLO_INFER_HOME to the folder."),
    (("branch", "tag", "commit"), "Use revision=...."),
    (("cfg", "config_file", "config_path"), "Use config=..., a ModelConfig."),
    (SCORE_KEYWORDS, _AT_THE_CALL.format(ours="min_score=...")),
    (SIZE_KEYWORDS, _AT_THE_CALL.format(ours="input_size=...")),
    (AGNOSTIC_KEYWORDS, _AT_THE_CALL.format(ours="across_classes=True")),
    (COUNT_KEYWORDS, "Use thresholds=..., e.g. PostprocessConfig(max_per_image=...)."),
    (IOU_KEYWORDS, 'Use thresholds=..., e.g. PostprocessConfig(nms="greedy", nms_iou=...).'),
    (CLASS_KEYWORDS, "Load the model without it, and use model.only([...])."),
    (("num_classes", "nc"), "Remove it: the classes follow from the weights. fine_tune changes them."),
    (("verbose",), 'Remove it. logging.getLogger("solo_infer") has the messages.'),
)
PLOT_KEYWORDS = _table(
    (SCORE_KEYWORDS, "Use min_score=..., the lowest score to draw."),
    (("img", "im", "canvas", "background", "im_gpu", "scene"), "Use image=..., (H, W, 3) uint8 RGB."),
    (("opacity", "mask_alpha", "transparency"), "Use alpha=..., 0..1."),
    (("box", "bbox", "bboxes", "show_boxes", "draw_boxes", "show_box"), "Use boxes=True."),
    (("labels", "label", "text", "show_labels", "show_label", "show_conf", "names"), "Use captions=...."),
    (("font_path", "font_file"), "Use font=..., the path of a font file."),
    (("line_width", "line_thickness", "thickness", "font_size"), "Remove it: sizes follow from the image."),
    (("classes", "class_ids"), "Use result.filter(classes=[...]).plot()."),
    (("show", "view"), "Use result.plot().show()."),
    (("save", "path", "filename", "out_file"), 'Use result.save("drawing.png").'),
)
SAVE_RESULT_KEYWORDS = _table(
    (
        ("filename", "file", "file_name", "fp", "fname", "out_file", "save_path", "output", "name"),
        "Use path=..., or pass the path as the first argument.",
    )
)
FILTER_KEYWORDS = _table(
    (SCORE_KEYWORDS, "Use min_score=..., the lowest score to keep."),
    (("class_ids", "class_names", "class_id", "cls", "labels", "label", "names"), "Use classes=[...]."),
)
EVALUATE_KEYWORDS = _table(
    (SCORE_KEYWORDS, "Use evaluate(model.with_settings(min_score=...), ...)."),
    (SIZE_KEYWORDS, "Use evaluate(model.with_settings(input_size=...), ...)."),
    (AGNOSTIC_KEYWORDS, "Use evaluate(model.with_settings(across_classes=True), ...)."),
    (IOU_KEYWORDS, "Use evaluate(model.with_thresholds(...), ...)."),
    (("max_det", "max_dets", "proposal_nums", "max_per_image"), "Use max_detections=(1, 10, 100)."),
    (("data", "ann_file", "anns", "annotation_file", "gt", "dataset"), "Use annotations=..., a COCO file."),
    (("img_dir", "image_folder", "image_dir", "img_folder", "folder"), "Use images=..., a folder."),
    (("batch", "bs"), "Use batch_size=...."),
    (("verbose", "show_progress", "quiet"), "Use progress=False to hide the progress bar."),
    (("save_json", "outfile", "outfile_prefix", "save_path", "out"), "Use output=..., a file to write."),
    (("device",), 'Use model.to("cuda") before.'),
)


def explain_keywords(function_name: str, hints: Mapping[str, str]) -> Callable[[F], F]:
    """Decorate a function so that unknown keyword arguments raise ``KeywordError`` with a hint.

    If the function takes any keywords, only those in ``hints`` are refused.

    Args:
        function_name: Name of the function for messages.
        hints: Sentences that say what to do instead, by keyword.
    """

    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters.values()
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [item.name for item in parameters if item.kind in kinds]
        known = [name for name in names if name not in ("self", "cls")]
        takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            unknown = [name for name in kwargs if name not in known and (name in hints or not takes_any)]
            if unknown:
                raise KeywordError(
                    " ".join(_explain(name, kwargs[name], function_name, hints, known) for name in unknown)
                )
            return function(*args, **kwargs)

        return cast(F, checked)

    return decorate


def _explain(name: str, value: Any, function_name: str, hints: Mapping[str, str], known: list[str]) -> str:
    """Return the sentences for one unknown keyword."""
    own = did_you_mean(name, known)
    foreign = name.lower() if name.lower() in hints else closest(name, hints)
    if foreign is not None and (foreign == name.lower() or not own):
        hint = hints[foreign]
    else:
        hint = f"{own}Keywords: {', '.join(known)}."
    return f"{name}={bounded_repr(value)} is an unknown keyword of {function_name}. {hint}"
