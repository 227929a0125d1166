"""Locks of compiled extensions that outlived their process.

Torch compiles C++ extensions at first use, DeepSpeed's among them, and keeps others out by a file ``lock`` in the
folder of the extension. A process killed meanwhile leaves it there, and every later one waits for it in silence.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_STALE_S = 900.0  # the longest compilation seen took 65 s


class StaleCompileLock(OSError):
    """A lock that nobody will take away; the message names it."""


def refuse_stale_compile_locks() -> None:
    """Looks where torch keeps compiled extensions.

    Raises:
        StaleCompileLock: a lock there is older than any compilation takes.
    """
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    # The same place that torch.utils.cpp_extension chooses.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = Path(root) if root else cache / "torch_extensions"
    for lock in sorted(folder.glob("**/lock")):
        try:
            age_s = time.time() - lock.stat().st_mtime
        except FileNotFoundError:  # its process has just finished
            continue
        if age_s > _STALE_S:
            raise StaleCompileLock(
                f"{lock} is {age_s / 60:.0f} minutes old: a process was killed while it compiled an extension of "
                f"torch, and every later one would wait for it for ever. If nothing is compiling now, say rm {lock}"
            )
