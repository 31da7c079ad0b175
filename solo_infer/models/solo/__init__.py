"""SOLO, Decoupled SOLO and Decoupled Light SOLO."""
