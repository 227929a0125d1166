"""Errors of a preparation that a user can fix."""

from __future__ import annotations


class PrepareError(ValueError):
    """One sentence that names what is wrong, where, and what to do about it."""


class ColumnError(PrepareError):
    """A required column is missing from a table."""


class PlaceError(PrepareError):
    """A path or URL cannot be reached with the setup of this machine."""
