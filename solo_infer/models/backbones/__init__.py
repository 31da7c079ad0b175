"""Backbones: classifiers without their classification layer, which return four feature maps."""
