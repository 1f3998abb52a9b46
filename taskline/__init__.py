"""Functions that run later, elsewhere, reliably."""

__version__ = "0.1.0"
