"""Formats of results, one module each."""
