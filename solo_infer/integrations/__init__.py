"""Other programs and libraries that run models: Ray Data."""
