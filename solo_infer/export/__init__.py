"""Export to ONNX, and results from exported models."""
