"""Make ``tests/data/*__yolact_r50.npz``: detections on the photo, losses and gradients of mmdet.

    PYTHONPATH=tests:. python tests/helpers/make_yolact_goldens.py KIT_DIRECTORY

Requires mmdet 3.3 and the reference kit, whose scripts build mmdet's models with the procedural weights.
"""

import sys

import numpy as np
import torch
from helpers.paths import DATA

MODEL = "yolact_r50"
SIZE = (320, 256)
GRADIENTS = (
    "backbone.conv1.weight",
    "backbone.layer4.2.bn3.weight",
    "neck.lateral_convs.2.conv.weight",
    "neck.fpn_convs.0.conv.weight",
    "neck.fpn_convs.4.conv.weight",
    "bbox_head.head_convs.0.conv.weight",
    "bbox_head.conv_cls.weight",
    "bbox_head.conv_cls.bias",
    "bbox_head.conv_reg.weight",
    "bbox_head.conv_coeff.weight",
    "mask_head.protonet.0.weight",
    "mask_head.protonet.10.weight",
    "mask_head.segm_branch.segm_conv.weight",
)


def photo(detector, config):
    """Return the summary of the input and the detections on the photo, with the keys of the kit."""
    import make_goldens

    inputs, metas = make_goldens.load_image(detector, config, str(DATA / "chelsea.png"))
    with torch.no_grad():
        outputs = make_goldens.run(detector, inputs, metas)
    return {key: value for key, value in outputs.items() if key.startswith(("input", "img0"))}


def sample(case, image):
    """Return the ground truth of an image, which fills the network input as in YOLACT's training."""
    import procedural_data
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    boxes, labels, masks = procedural_data.ground_truth(case, image, "")
    padded = np.zeros((len(masks), *SIZE), np.uint8)
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    shapes = ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")
    result = DetDataSample(metainfo=dict.fromkeys(shapes, SIZE))
    result.gt_instances = InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        masks=BitmapMasks(padded, *SIZE),
    )
    return result


def losses(detector):
    """Return losses, gradient norms and positive anchors with their instances, by case."""
    import make_goldens
    import procedural_data

    detector.train()
    for module in detector.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # solo_infer freezes the statistics
    inputs, _ = make_goldens.load_tensor("tensor_2x320x256", "")
    parameters = dict(detector.named_parameters())
    out = {}
    for case in procedural_data.LOSS_CASES:
        detector.zero_grad(set_to_none=True)
        loss_dict = detector.loss(inputs, [sample(case, image) for image in range(2)])
        sums = {
            key: (sum(value) if isinstance(value, list) else value).sum() for key, value in loss_dict.items()
        }
        sum(sums.values()).backward()
        out |= {f"{case}/{key}": value.item() for key, value in sums.items()}
        for key in GRADIENTS:
            gradient = parameters[key].grad
            out[f"{case}/grad_norm/{key}"] = 0.0 if gradient is None else gradient.norm().item()
        for image, info in enumerate(detector.bbox_head.get_positive_infos()):
            out[f"{case}/img{image}_positive"] = info.pos_inds.numpy()
            out[f"{case}/img{image}_owner"] = info.pos_assigned_gt_inds.numpy()
    return out


def main():
    sys.path.insert(0, sys.argv[1])
    import mmdet_reference

    detector, config = mmdet_reference.build_model(MODEL), mmdet_reference.load_config(MODEL)
    np.savez_compressed(DATA / f"photo__{MODEL}.npz", **photo(detector, config))
    np.savez_compressed(DATA / f"losses__{MODEL}.npz", model=MODEL, **losses(detector))


if __name__ == "__main__":
    main()
