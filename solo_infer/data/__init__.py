"""Images and COCO files as inputs."""
