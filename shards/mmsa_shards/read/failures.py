"""The errors by which reading a file fails, of Python, pyarrow, zlib and the library behind http URLs."""

from __future__ import annotations

import sys
import zlib

import pyarrow as pa


def truncation_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of truncated files or damaged compression."""
    return EOFError, zlib.error, *_aiohttp_error("ClientPayloadError")


def access_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of unreadable files, disks and servers."""
    return OSError, pa.ArrowException, *_aiohttp_error("ClientError")


def _aiohttp_error(name: str) -> tuple[type[Exception], ...]:
    """Returns an error class of aiohttp, which fsspec does not convert to an OSError or EOFError."""
    error = getattr(sys.modules.get("aiohttp"), name, None)  # None also while another call imports it
    return () if error is None else (error,)
