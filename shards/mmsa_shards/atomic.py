"""Atomic writes: a file appears under its name complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Errors of a write, which do not carry the name of the file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`; when the block succeeds, syncs it to disk and renames it to `path`.

    An exception in the block leaves `path` unchanged, and so does a killed process. The temporary name is random,
    so two writers never share one, whichever nodes they run on.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and (
            error.filename == str(temporary) or (error.filename is None and error.errno in _NO_ROOM)
        ):
            error.filename = str(path)  # the name that the user knows
        raise
    flush(path.parent)  # a rename is durable only once its folder is synced


def flush(path: Path) -> None:
    """Forces the contents of a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
