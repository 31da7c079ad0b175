"""Prediction results: access, drawing, formats and files."""
