"""SOLO, Decoupled SOLO, Decoupled Light SOLO and SOLOv2."""
