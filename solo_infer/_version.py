"""The version, read by the build and by ``solo_infer.__version__``."""

__version__ = "0.1.0"
