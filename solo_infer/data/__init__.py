"""Images, videos and COCO files as inputs."""
