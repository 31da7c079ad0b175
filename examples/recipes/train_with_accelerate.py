"""Train the network in a loop of Hugging Face Accelerate, in place of ``fine_tune``.

pip install accelerate
accelerate launch examples/recipes/train_with_accelerate.py IMAGES ANNOTATIONS OUTPUT [EPOCHS] [MODEL]
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from solo_infer import load_model
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.training import (
    FINE_TUNE,
    CocoDataset,
    DatasetBatches,
    fixed_input_size,
    make_augmentation,
    replace_classifier,
)
from solo_infer.training.initialization import prepare_for_training


def main(images, annotations, output, epochs=3, model="tiny"):
    accelerator = Accelerator()
    start = load_model(model)
    preprocessing = start.config.preprocessing
    dataset = CocoDataset(images, annotations, augment=make_augmentation(FINE_TUNE, preprocessing))
    batches = DatasetBatches(
        dataset,
        min(4, len(dataset)),
        preprocessing,
        workers=0,
        size=fixed_input_size(FINE_TUNE, preprocessing),
    )
    start = replace_classifier(start, dataset.categories)
    network = prepare_for_training(start.network, FINE_TUNE)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.05)
    network, optimizer = accelerator.prepare(network, optimizer)

    for epoch in range(int(epochs)):
        # DatasetBatches shares the images among processes, so that Accelerate prepares no loader.
        for batch in batches.epoch(epoch, 0):
            pixels, targets = send_to_device(batch, accelerator.device)
            losses = network(pixels, targets)
            loss = sum(losses.values())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trainable, 35.0)
            optimizer.step()
            optimizer.zero_grad()
            values = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            accelerator.print(f"epoch {epoch + 1}: {values}")

    if accelerator.is_main_process:
        network = accelerator.unwrap_model(network).cpu().eval()
        print("Model:", build_segmenter(start.config, network).save_pretrained(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
