"""Backbones: the feature maps that a pyramid is built on."""
