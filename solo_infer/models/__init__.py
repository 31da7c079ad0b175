"""The networks: tensors in, tensors out."""

from solo_infer.models.solo import SOLONetwork, build_network

__all__ = ["SOLONetwork", "build_network"]
