"""From pixels to a network input, and from network outputs to detections."""
