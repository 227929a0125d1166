"""The errors of preparation that a person can mend."""

from __future__ import annotations


class PrepareError(ValueError):
    """One sentence that names what is wrong, where, and what to do about it."""


class ColumnError(PrepareError):
    """A table without a column that is needed."""
