"""Train the network in a Lightning module, in place of ``fine_tune``.

pip install lightning
python examples/recipes/train_with_lightning.py IMAGES ANNOTATIONS OUTPUT [EPOCHS] [MODEL]
"""

import sys

import lightning
import torch

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


class EpochBatches:
    """The batches of one epoch. Lightning needs an object that it can iterate over more than once."""

    def __init__(self, batches, epoch):
        self.batches, self.epoch = batches, epoch

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return self.batches.epoch(self.epoch, 0)


class LightningSegmenter(lightning.LightningModule):
    """A network of solo_infer, which returns its losses in train mode."""

    def __init__(self, model, batches, lr=1e-4):
        super().__init__()
        self.config, self.batches, self.lr = model.config, batches, lr
        self.network = prepare_for_training(model.network, FINE_TUNE)

    def train_dataloader(self):
        """Return the batches of the epoch; each epoch has its own order and augmentation."""
        return EpochBatches(self.batches, self.current_epoch)

    def training_step(self, batch, index):
        """Return the loss of a batch."""
        images, targets = batch
        losses = self.network(images, targets)
        self.log_dict(losses, prog_bar=True, batch_size=len(images))
        return sum(losses.values())

    def configure_optimizers(self):
        """Return the optimizer of the parameters that are not frozen."""
        trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trainable, lr=self.lr, weight_decay=0.05)

    def segmenter(self):
        """Return the trained model for predictions."""
        return build_segmenter(self.config, self.network.cpu().eval())


def main(images, annotations, output, epochs=3, model="tiny"):
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
    module = LightningSegmenter(replace_classifier(start, dataset.categories), batches)
    trainer = lightning.Trainer(
        max_epochs=int(epochs),
        gradient_clip_val=35.0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,  # DatasetBatches shares the images among processes
        default_root_dir=output,
        logger=False,
        log_every_n_steps=1,
        enable_checkpointing=False,
    )
    trainer.fit(module)
    print(f"{trainer.global_step} iterations")
    print("Model:", module.segmenter().save_pretrained(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
