"""The version, read by the build and by `safe_refs.__version__`."""

__version__ = "0.2.0"
