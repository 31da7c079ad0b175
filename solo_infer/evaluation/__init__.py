"""COCO mask AP of a model or of detections."""
