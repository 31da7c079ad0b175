"""Prediction results: access, drawing, formats, files."""
