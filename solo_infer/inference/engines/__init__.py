"""Exported models: their files, the engines that run them, and results from the outputs."""
