"""Runs a function over items in a process of its own, which an item may hang or crash without harm to the rest.

RDKit is C++: a molecule that never returns cannot be interrupted by Python, and one that crashes takes its
process along. So the process that might be lost holds nothing: it gets items, streams results back, and arms
a kernel timer before each item whose default action is to end it. The parent only reads; when the stream ends
early, the item whose result was due is the one to blame, and a fresh process goes on after it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Literal, TypeVar

from rdkit import RDLogger

T = TypeVar("T")
R = TypeVar("R")

# The limit counts the seconds that the item computes, which a busy machine does not change. Whatever waits
# instead of computing is ended by the clock on the wall.
_WALL_PER_CPU_SECOND = 5


@dataclass(frozen=True)
class Lost:
    """An item that ended its process."""

    reason: Literal["timeout", "crash"]
    message: str


@dataclass(frozen=True)
class _Raised:
    error: Exception


class Guard:
    """A process, started when it is needed and again when an item has ended it. One caller at a time."""

    def __init__(self) -> None:
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def map(self, function: Callable[[T], R], items: Sequence[T], *, seconds: float) -> Iterator[R | Lost]:
        """Yields, in order, the result of every item, or `Lost` for one that took its process along.

        Args:
            function: of one item; found by its name, so of module level.
            items: picklable.
            seconds: of computing that one item may take.

        Raises:
            Exception: whatever the function raises, as it would without a guard.
        """
        done = 0
        try:
            while done < len(items):
                child = self._child()
                try:
                    child.send((function, seconds, items[done:]))
                    while done < len(items):
                        result = child.recv()
                        if isinstance(result, _Raised):
                            raise result.error
                        done += 1
                        yield result
                except (EOFError, ConnectionError):
                    done += 1
                    yield _cause_of_death(self.close(), seconds)
        finally:
            if done < len(items):  # abandoned in the middle: what is still in the pipe answers no later call
                self.close()

    def close(self) -> int:
        """Ends the process, if there is one, and returns its exit code; the next `map` starts another."""
        if self._running is None:
            return 0
        (process, child), self._running = self._running, None
        process.kill()
        child.close()
        return process.wait()

    def _child(self) -> Connection:
        if self._running is None:
            ours, theirs = Pipe()
            package_root = str(Path(__file__).resolve().parents[1])
            process = subprocess.Popen(
                [sys.executable, "-c", f"from mmsa_shards.guard import serve; serve({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # What this process can import, the child must, installed or not.
                env={**os.environ, "PYTHONPATH": os.pathsep.join([package_root, *filter(None, sys.path)])},
                start_new_session=True,  # Ctrl-C is for the parent; the child ends when its pipe does
            )
            theirs.close()
            self._running = process, ours
        return self._running[1]


def guard_of_this_process() -> Guard:
    """Returns the guard that everything in this process shares; a forked process gets its own."""
    return _guard_of(os.getpid())


@cache
def _guard_of(pid: int) -> Guard:
    return Guard()


def serve(descriptor: int) -> None:
    """The life of the child: works on batches of items from the pipe `descriptor` until the pipe ends."""
    parent = Connection(descriptor)
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has gone
        while True:
            function, seconds, items = parent.recv()
            for item in items:
                _arm(seconds)
                try:
                    result = function(item)
                except Exception as error:
                    result = _Raised(error)
                _arm(0)
                parent.send(result)


def _arm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * _WALL_PER_CPU_SECOND)


def _cause_of_death(exit_code: int, seconds: float) -> Lost:
    if -exit_code in (signal.SIGPROF, signal.SIGALRM):
        return Lost("timeout", f"took more than {seconds:g} s")
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return Lost("crash", f"ended the process that worked on it ({how})")
