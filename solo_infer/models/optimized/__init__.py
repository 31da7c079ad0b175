"""Faster replacements of modules, swapped in for inference."""
