"""Stale locks of compiled extensions.

Torch compiles C++ extensions, such as DeepSpeed's, at first use and locks the folder of the extension with a file
``lock``. A process killed while compiling leaves it there, and every later process waits for it silently.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_STALE_S = 900.0  # the longest compilation seen took 65 s


class StaleCompileLock(OSError):
    """A lock that no process will release; the message names it."""


def refuse_stale_compile_locks() -> None:
    """Checks the folder in which torch keeps compiled extensions.

    Raises:
        StaleCompileLock: a lock there is older than any compilation takes.
    """
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    # As torch.utils.cpp_extension chooses it.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = Path(root) if root else cache / "torch_extensions"
    for lock in sorted(folder.glob("**/lock")):
        try:
            age_s = time.time() - lock.stat().st_mtime
        except FileNotFoundError:  # its process has just finished
            continue
        if age_s > _STALE_S:
            raise StaleCompileLock(
                f"{lock} is {age_s / 60:.0f} minutes old: a process was killed while compiling a torch extension, "
                f"and every later one would wait for it forever. If nothing is compiling now, run rm {lock}"
            )
