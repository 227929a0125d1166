"""MMSA: multi-modal molecular representation learning with structure awareness, as a distributed system."""

__version__ = "0.1.0"
