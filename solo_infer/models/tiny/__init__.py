"""Tiny: a SOLOv2-style head with dynamic mask kernels on ShuffleNetV2, for CPUs."""
