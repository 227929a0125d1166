"""The errors of preparation that a person can mend."""

from __future__ import annotations


class PrepareError(ValueError):
    """One sentence that names what is wrong, where, and what to do about it."""


class ColumnError(PrepareError):
    """A table without a column that is needed."""


class PlaceError(PrepareError):
    """A path or URL that cannot be reached from this machine as it is set up."""
