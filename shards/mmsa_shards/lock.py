"""One process at a time at a piece of work, by a lock that ends with the process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOG = logging.getLogger(__name__)

# Of file systems without locks, such as Lustre mounted without `flock` and NFS without its lock service.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def locked(path: Path, refusal: Exception) -> Iterator[None]:
    """Holds the lock file `path` while the block runs, and removes it at the end.

    The kernel lets go of the lock when the process ends, however it does, so the file of a killed one locks nothing.
    On a file system without locks the block runs unguarded, after a warning.

    Args:
        path: of the lock file, in a folder of this machine that can be written to.
        refusal: raised where another process holds the lock.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _LOG.warning("%s has no locks (%s): start no second process there", path.parent, error.strerror)
        if os.fstat(file.fileno()).st_nlink == 0:  # its last holder removed it after it was opened here
            raise refusal
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
