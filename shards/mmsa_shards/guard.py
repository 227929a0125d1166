"""Runs a function over items in a process of its own, which an item may hang or crash without harm to the rest.

RDKit is C++: a molecule that never returns cannot be interrupted by Python, and one that crashes takes its
process along. So the process that might be lost holds nothing. This *worker* gets items, sends results back in
batches, notes which item it is at, and arms a kernel timer before each step of it whose default action is to end it.
The caller only reads; when the stream ends early, the item that was noted is the one to blame, and a fresh
worker does what had not arrived and goes on after it.

Workers are forked by a *nursery*, a small process that has imported RDKit once, so that a lost worker costs
milliseconds. The nursery ends, with its worker, when the caller does, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal, TypeVar

from rdkit import RDLogger

T = TypeVar("T")

# The limit counts the seconds that the item computes, which a busy machine does not change. Whatever waits
# instead of computing is ended by the clock on the wall.
_WALL_PER_CPU_SECOND = 5

# Results travel together when this long has passed since the last went: seldom enough that pickling and waking
# the caller cost nothing beside RDKit, often enough that little is computed twice when a worker is lost.
_SECONDS_BETWEEN_BATCHES = 0.05

# RDKit and InChI push each other's code out of the caches: of 1,038 PubChem molecules with 3D, parsing, standardizing
# and InChIKeys take 0.52 ms each one after the other, 0.39 so many at a time.
_ITEMS_TOGETHER = 16

# Bytes that a worker may take beyond what it starts with. The largest molecules that preparation accepts need
# a tenth of it; a runaway must not take the memory of the whole machine.
_MEMORY = 4 << 30

# No item sends these to itself: they come from a person, a scheduler or the kernel when memory is short.
# An item is given up only when that befell it this many times.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TRIES = 3

# A process with several threads must not fork.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# What the nursery imports for its workers.
_PRELOADED = "mmsa_shards.molecule"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Lost:
    """An item that ended its process, or was more than it could hold."""

    reason: Literal["timeout", "crash"]
    message: str


@dataclass(frozen=True)
class _Raised:
    error: Exception


class Guard:
    """A worker, started when it is needed and again when an item has ended it. One caller at a time."""

    def __init__(self) -> None:
        self._nursery: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._worker: Connection | None = None
        self._at = os.fdopen(os.memfd_create("item at work"), "r+b", buffering=0)

    def map(
        self,
        function: Callable[[T], Any],
        items: Sequence[T],
        *,
        then: Sequence[Callable[[Any], Any]] = (),
        seconds: float,
    ) -> Iterator[Any]:
        """Yields, in order, the result of every item, or `Lost` for one that took its process along.

        Args:
            function: of one item; found by its name, so of module level.
            items: picklable.
            then: further steps, each of what the one before made of an item. A step is taken for a few items before
                the next is, which finds its code in the processor's caches.
            seconds: of computing that one step may take for one item.

        Raises:
            Exception: whatever the functions raise, as they would without a guard.
            RuntimeError: no worker can be started.
        """
        steps = (function, *then)
        done, stop = 0, len(items)  # from `done` to `stop` is to be done next
        lost: Lost | None = None  # what is known of the item at `stop`
        deaths = Counter[int]()
        try:
            while done < len(items):
                if lost is not None and done == stop:
                    yield lost
                    done, stop, lost = done + 1, len(items), None
                    continue
                first = done
                for results in self._batches((steps, seconds, items[first:stop])):
                    for result in results:
                        if isinstance(result, _Raised):
                            raise result.error
                        done += 1
                        yield result
                    if done == stop:
                        break
                if done < stop:
                    exit_code = self._bury()
                    blamed = max(done, first + int.from_bytes(os.pread(self._at.fileno(), 8, 0), "little"))
                    deaths[blamed] += 1
                    if -exit_code not in _FROM_OUTSIDE or deaths[blamed] == _TRIES:
                        stop, lost = blamed, _cause_of_death(exit_code, seconds)
        finally:
            if done < len(items):  # abandoned in the middle: what is still in the pipe answers no later call
                self.close()

    def close(self) -> None:
        """Ends the processes, if there are any; the next `map` starts others."""
        if self._nursery is not None:
            (process, control), self._nursery = self._nursery, None
            process.kill()  # the worker dies with it
            process.wait()
            control.close()
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _batches(self, order: tuple[Any, ...]) -> Iterator[list[Any]]:
        """Yields lists of results as they come, without end, until the worker dies."""
        with contextlib.suppress(ConnectionError):
            if self._worker is None:
                self._worker = self._start()
            os.pwrite(self._at.fileno(), bytes(8), 0)
            self._worker.send(order)
        while self._worker is not None:
            try:
                results = self._worker.recv()
            except (EOFError, OSError):  # the latter where it died in the middle of a message
                return
            yield results

    def _start(self) -> Connection:
        if self._nursery is None:
            self._nursery = _open_nursery()
        ours, theirs = Pipe()
        with theirs:
            socket.send_fds(self._nursery[1], [b"+"], [theirs.fileno(), self._at.fileno()])
        return ours

    def _bury(self) -> int:
        """Returns the exit code of the worker that died.

        Raises:
            RuntimeError: the nursery has failed by itself.
        """
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        assert self._nursery is not None
        process, control = self._nursery
        with contextlib.suppress(ConnectionError):
            if status := control.recv(4):
                return int.from_bytes(status, "little", signed=True)
        exit_code = process.wait()
        self.close()
        if -exit_code not in _FROM_OUTSIDE:
            raise RuntimeError(
                f"the process in which RDKit runs cannot start (exit code {exit_code}): see its messages above, and "
                f"whether `{sys.executable} -c 'import {_PRELOADED}'` works"
            )
        return exit_code


@contextlib.contextmanager
def free_guard() -> Iterator[Guard]:
    """Gives, for the while, a guard that no other thread of this process uses; it is kept for the next who asks."""
    idle = _idle(os.getpid())
    try:
        guard = idle.pop()
    except IndexError:
        guard = Guard()
    try:
        yield guard
    finally:
        idle.append(guard)


@cache
def _idle(pid: int) -> list[Guard]:
    return []  # of this process alone: a forked one starts its own


def _quicker_malloc() -> dict[str, str]:
    """The environment in which RDKit, which allocates much, has the jemalloc that comes with Ray, if Ray is there.

    It takes 0.88 to 0.90 of the time that it takes with the malloc of glibc 2.36. What is freed goes back to the
    system, so that no molecule meets the limit of memory for what was held for another.
    """
    # Looked for by its path: to ask for the module `ray` would be as much as to need it.
    library = next((p for folder in sys.path if (p := Path(folder, "ray/core/libjemalloc.so")).is_file()), None)
    if library is None or " " in str(library) or ":" in str(library):  # at both the loader ends a name
        return {}
    preloaded = " ".join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))
    return {"LD_PRELOAD": preloaded, "MALLOC_CONF": "retain:false,narenas:1"}


def _open_nursery() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    package_root = str(Path(__file__).resolve().parents[1])
    # What this process can import, the child must, installed or not.
    path = os.pathsep.join([package_root, *filter(None, sys.path)])
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from mmsa_shards.guard import nursery; nursery({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **_quicker_malloc(), **_ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the caller
        )
    return process, ours


def nursery(descriptor: int) -> None:
    """The life of the nursery: forks a worker for every message on the socket `descriptor`, until that ends.

    A message brings the worker's pipe and the file for the number of the item at work. The answer, once the
    worker has died, is its exit code as `subprocess` gives it.
    """
    importlib.import_module(_PRELOADED)
    gc.freeze()  # what has been imported is no garbage: to look through it takes as long as fifty molecules
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    control = socket.socket(fileno=descriptor)
    with contextlib.suppress(ConnectionError):  # the caller has gone
        while True:
            message, descriptors, *_ = socket.recv_fds(control, 1, 2)
            if not message:
                return
            alive, held_by_worker = os.pipe()
            me = os.getpid()
            worker = os.fork()
            if worker == 0:
                control.close()
                os.close(alive)
                _work(me, *descriptors)
                os._exit(0)
            for each in (held_by_worker, *descriptors):
                os.close(each)
            select.select([alive, descriptor], [], [])  # the worker has died, or the caller
            os.kill(worker, signal.SIGKILL)
            exit_code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
            os.close(alive)
            control.sendall(exit_code.to_bytes(4, "little", signed=True))


def _work(parent: int, pipe: int, at: int) -> None:
    """The life of a worker: works on the orders from `pipe` until that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it was asked to take this along
        return
    for by_timer in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(by_timer, signal.SIG_DFL)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = held + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    caller = Connection(pipe)
    with contextlib.suppress(EOFError, ConnectionError):  # the caller has gone
        while True:
            steps, seconds, items = caller.recv()
            together = _ITEMS_TOGETHER if len(steps) > 1 else 1
            results, sent = [], time.monotonic()
            for start in range(0, len(items), together):
                few = list(items[start : start + together])
                for step in steps:
                    for number, item in enumerate(few):
                        if isinstance(item, _Raised | Lost):
                            continue
                        os.pwrite(at, (start + number).to_bytes(8, "little"), 0)
                        _arm(seconds)
                        few[number] = _outcome(step, item)
                        _arm(0)
                results += few
                if time.monotonic() - sent > _SECONDS_BETWEEN_BATCHES or any(isinstance(one, _Raised) for one in few):
                    caller.send(results)
                    results, sent = [], time.monotonic()
            caller.send(results)


def _outcome(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except MemoryError:
        return Lost("crash", f"needs more than {_MEMORY >> 30} GiB of memory")
    except Exception as error:
        return _Raised(error)


def _arm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * _WALL_PER_CPU_SECOND)


def _cause_of_death(exit_code: int, seconds: float) -> Lost:
    if -exit_code in (signal.SIGPROF, signal.SIGALRM):
        return Lost("timeout", f"took more than {seconds:g} s")
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return Lost("crash", f"ended the process that worked on it ({how})")
