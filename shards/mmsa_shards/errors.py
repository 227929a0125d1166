"""Errors of a preparation that a user can fix."""

from __future__ import annotations


class PrepareError(ValueError):
    """One sentence that names what is wrong, where, and what to do about it."""


class ColumnError(PrepareError):
    """A required column is missing from a table."""


class ChangedError(PrepareError):
    """An input is no longer in the state in which the job found it."""


class PlaceError(PrepareError):
    """A path or URL cannot be reached with the setup of this machine."""
