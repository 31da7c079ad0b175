"""Models that take images and return results."""
