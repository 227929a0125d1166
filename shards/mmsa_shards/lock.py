"""One process at a time at a piece of work, by a lock that ends with the process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, refusal: Exception) -> Iterator[None]:
    """Holds the lock file `path` while the block runs, and removes it at the end.

    The kernel lets go of the lock when the process ends, however it does, so the file of a killed one locks nothing.

    Args:
        path: of the lock file, in a folder of this machine that can be written to.
        refusal: raised where another process holds the lock.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        if os.fstat(file.fileno()).st_nlink == 0:  # its last holder removed it after it was opened here
            raise refusal
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
