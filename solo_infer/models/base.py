"""Base class of the networks of every family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from solo_infer.config import ArchitectureConfig
from solo_infer.models.target import Target


class SegmentationNetwork(nn.Module, ABC):
    """Base class of the networks.

    Attributes:
        config: Architecture of the network.
        losses: Names of the losses that ``forward`` returns in train mode.
        backbone: Maps images to feature maps; has ``freeze_stem``.
    """

    losses: ClassVar[tuple[str, ...]]
    config: ArchitectureConfig
    backbone: nn.Module

    @abstractmethod
    def forward(self, images: Tensor, targets: list[Target] | None = None) -> Any:
        """Run the whole network.

        Args:
            images: (N, 3, H, W) normalized network inputs.
            targets: Ground truth of each image; required in train mode.

        Returns:
            In eval mode the raw outputs of the heads; in train mode a dict of scalar losses.
        """

    @abstractmethod
    def init_weights(self) -> None:
        """Initialize the neck and the heads for training, as mmdet does; the backbone stays as it is."""

    @abstractmethod
    def class_rows(self, labels: Sequence[int]) -> dict[str, list[int]]:
        """Return the output channels that belong to some classes.

        Args:
            labels: Labels of the classes, in the order that the smaller network will have.

        Returns:
            {name of a layer: its output channels in a network of only these classes}.
        """
