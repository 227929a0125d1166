"""Runs a function over items in a worker process, which an item may hang or crash without harm to the rest.

RDKit is C++: Python cannot interrupt a molecule that never returns, and a molecule that crashes takes its process
along. The *worker process* therefore holds nothing that would be missed. It receives items, sends results back in
batches, and records which item it is at. Before each step of an item it sets a *deadline*: a kernel timer whose signal
ends the process. The caller only reads. If the results end early, the recorded item is to blame; a new worker process
computes what had not arrived and continues after that item.

Worker processes are forked by a *fork server*, a small process that has imported RDKit once, so that a restart takes
milliseconds. The fork server and its worker process end when the caller ends, in whatever way it does.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from rdkit import RDLogger

T = TypeVar("T")

# A deadline counts seconds of CPU time, which do not depend on how busy the machine is. An item that waits instead of
# computing is ended after this many times as many seconds of wall-clock time.
_WALL_PER_CPU_SECOND = 5

# Results are sent when this long has passed since the last batch: seldom enough that pickling and waking the caller
# cost nothing compared with RDKit, often enough that little is computed twice after a restart.
_SECONDS_BETWEEN_BATCHES = 0.05

# RDKit and InChI evict each other's code from the processor's caches: for 1,038 PubChem molecules with 3D, parsing,
# standardizing and InChIKeys take 0.52 ms a molecule if done molecule by molecule, 0.39 ms if each step is taken for
# this many molecules in a row.
_ITEMS_TOGETHER = 16

# Bytes of address space that a worker process may take beyond those it starts with. The largest molecules that
# preparation accepts need a tenth of it; a runaway must not take the memory of the whole machine.
_MEMORY = 4 << 30

# No item sends these signals to its own process: they come from a person, a scheduler, or the kernel when memory is
# short. An item is given up only if they ended its process this many times.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TRIES = 3

# A process with several threads must not fork.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# What the fork server imports on behalf of its worker processes.
_PRELOADED = "mmsa_shards.molecule"

_PR_SET_PDEATHSIG = 1  # of prctl(2): the signal to get when the parent process dies


@dataclass(frozen=True)
class Lost:
    """An item that ended its worker process, or needed more memory than one may take."""

    reason: Literal["timeout", "crash"]
    message: str


@dataclass(frozen=True)
class _Raised:
    error: Exception


class _Task(NamedTuple):
    """What a worker process is asked to do."""

    steps: tuple[Callable[[Any], Any], ...]
    seconds: float
    """Of CPU time for one step of one item."""
    items: Sequence[Any]


class _ForkServer(NamedTuple):
    process: subprocess.Popen[bytes]
    control: socket.socket


class Guard:
    """A worker process, started when it is needed and restarted when an item has ended it. One caller at a time."""

    def __init__(self) -> None:
        self._fork_server: _ForkServer | None = None
        self._worker: Connection | None = None
        # Shared with the worker process, which writes into it the number of the item that it is at.
        self._item_number = os.fdopen(os.memfd_create("item number"), "r+b", buffering=0)

    def map(
        self,
        function: Callable[[T], Any],
        items: Sequence[T],
        *,
        then: Sequence[Callable[[Any], Any]] = (),
        seconds: float,
    ) -> Iterator[Any]:
        """Yields, in order, the result for every item, or `Lost` for an item that ended its worker process.

        Args:
            function: takes one item; at module level, because it is found by its name.
            items: picklable.
            then: further steps, each of which takes the result of the step before it. A step is taken for a few items
                in a row before the next step, so that it finds its code in the processor's caches.
            seconds: CPU time that one step may take for one item.

        Raises:
            Exception: whatever the functions raise, as they would without a guard.
            RuntimeError: no worker process can be started.
        """
        steps = (function, *then)
        done = 0  # results and losses yielded so far
        lost: dict[int, Lost] = {}  # by the number of the item; not yielded yet
        deaths = Counter[int]()  # of worker processes, by the number of the item
        try:
            while done < len(items):
                if done in lost:
                    done += 1
                    yield lost.pop(done - 1)
                    continue
                start, end = done, min(lost, default=len(items))
                for result in self._results(_Task(steps, seconds, items[start:end])):
                    done += 1
                    yield result
                if done < end:  # the worker process died, and the next round starts another
                    exit_code = self._reap_worker()
                    culprit = max(done, start + self._item_at_death())
                    deaths[culprit] += 1
                    if -exit_code not in _FROM_OUTSIDE or deaths[culprit] == _TRIES:
                        lost[culprit] = _cause_of_death(exit_code, seconds)
        finally:
            if done < len(items):  # abandoned midway: results still in the pipe must not answer a later call
                self.close()

    def close(self) -> None:
        """Ends the processes, if there are any; the next `map` starts new ones."""
        if self._fork_server is not None:
            server, self._fork_server = self._fork_server, None
            server.process.kill()  # its worker process dies with it
            server.process.wait()
            server.control.close()
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _results(self, task: _Task) -> Iterator[Any]:
        """Yields the results of a task as they arrive; ends early if the worker process dies.

        Raises:
            Exception: raised by a step; what came before it has been yielded.
        """
        with contextlib.suppress(ConnectionError):  # a process that is dead already shows below
            if self._worker is None:
                self._worker = self._start_worker()
            os.pwrite(self._item_number.fileno(), bytes(8), 0)
            self._worker.send(task)
        missing = len(task.items)
        while missing and self._worker is not None:
            try:
                batch = self._worker.recv()
            except (EOFError, OSError):  # OSError if it died in the middle of a message
                return
            for result in batch:
                if isinstance(result, _Raised):
                    raise result.error
                yield result
            missing -= len(batch)

    def _start_worker(self) -> Connection:
        if self._fork_server is None:
            self._fork_server = _start_fork_server()
        ours, theirs = Pipe()
        with theirs:
            descriptors = [theirs.fileno(), self._item_number.fileno()]
            socket.send_fds(self._fork_server.control, [b"+"], descriptors)
        return ours

    def _item_at_death(self) -> int:
        """Returns the number, within its task, of the item that the worker process was at."""
        return int.from_bytes(os.pread(self._item_number.fileno(), 8, 0), "little")

    def _reap_worker(self) -> int:
        """Returns the exit code of the worker process that died, or of the fork server if that died too.

        Raises:
            RuntimeError: the fork server failed by itself.
        """
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        assert self._fork_server is not None
        process, control = self._fork_server
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
    """Borrows an idle guard from the pool of this process, which starts another if none is idle."""
    idle = _idle_guards(os.getpid())
    try:
        guard = idle.pop()
    except IndexError:
        guard = Guard()
    try:
        yield guard
    finally:
        idle.append(guard)


@cache
def _idle_guards(pid: int) -> list[Guard]:
    return []  # one pool for each process: a forked process must not share its parent's guards


def _cause_of_death(exit_code: int, seconds: float) -> Lost:
    if -exit_code in (signal.SIGPROF, signal.SIGALRM):
        return Lost("timeout", f"took more than {seconds:g} s")
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return Lost("crash", f"ended the process that worked on it ({how})")


def _start_fork_server() -> _ForkServer:
    ours, theirs = socket.socketpair()
    package_root = str(Path(__file__).resolve().parents[1])
    # The child must be able to import what this process can, installed or not.
    path = os.pathsep.join([package_root, *filter(None, sys.path)])
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from mmsa_shards.guard import serve_forks; serve_forks({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **_quicker_malloc(), **_ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the caller
        )
    return _ForkServer(process, ours)


def _quicker_malloc() -> dict[str, str]:
    """Returns environment variables that load the jemalloc that ships with Ray; none if Ray is not installed.

    RDKit allocates much: with jemalloc it takes 0.88 to 0.90 of the time that it takes with the malloc of glibc 2.36.
    Freed memory is returned to the system, so that no molecule meets the memory limit because of an earlier one.
    """
    # Looked up by path, because importing `ray` would make it a requirement.
    library = next((p for folder in sys.path if (p := Path(folder, "ray/core/libjemalloc.so")).is_file()), None)
    if library is None or " " in str(library) or ":" in str(library):  # separators of LD_PRELOAD
        return {}
    preloaded = " ".join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))
    return {"LD_PRELOAD": preloaded, "MALLOC_CONF": "retain:false,narenas:1"}


def serve_forks(descriptor: int) -> None:
    """Runs as the fork server: forks a worker process for every message on a socket, until the socket is closed.

    A message carries the pipe of the worker process and the file for its item number. The reply, sent after the
    worker process has died, is its exit code as `subprocess` reports it.

    Args:
        descriptor: file descriptor of the socket.
    """
    importlib.import_module(_PRELOADED)
    gc.freeze()  # imported objects are never garbage, and scanning them takes as long as fifty molecules
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    control = socket.socket(fileno=descriptor)
    with contextlib.suppress(ConnectionError):  # the caller has gone
        while True:
            message, descriptors, *_ = socket.recv_fds(control, 1, 2)
            if not message:
                return
            exit_code = _run_worker(control, *descriptors)
            control.sendall(exit_code.to_bytes(4, "little", signed=True))


def _run_worker(control: socket.socket, pipe: int, item_number: int) -> int:
    """Forks a worker process, waits until it or the caller ends, and returns the exit code of the worker process."""
    alive, held_by_worker = os.pipe()
    server = os.getpid()
    worker = os.fork()
    if worker == 0:
        control.close()
        os.close(alive)
        _work(server, pipe, item_number)
        os._exit(0)
    for each in (held_by_worker, pipe, item_number):
        os.close(each)
    select.select([alive, control.fileno()], [], [])  # the worker process has died, or the caller
    os.kill(worker, signal.SIGKILL)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    os.close(alive)
    return exit_code


def _work(server: int, pipe: int, item_number: int) -> None:
    """Runs as a worker process: performs the tasks that arrive on `pipe`, until it is closed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:  # the fork server died before it could take this process along
        return
    for by_timer in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(by_timer, signal.SIG_DFL)
    _limit_memory()
    caller = Connection(pipe)
    with contextlib.suppress(EOFError, ConnectionError):  # the caller has gone
        while True:
            _send_in_batches(caller, _perform(caller.recv(), item_number))


def _limit_memory() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = held + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _perform(task: _Task, item_number: int) -> Iterator[list[Any]]:
    """Yields the results of a few items at a time; each step is taken for all of them before the next step."""
    together = _ITEMS_TOGETHER if len(task.steps) > 1 else 1
    for start in range(0, len(task.items), together):
        few = list(task.items[start : start + together])
        for step in task.steps:
            for number, item in enumerate(few):
                if not isinstance(item, _Raised | Lost):
                    os.pwrite(item_number, (start + number).to_bytes(8, "little"), 0)
                    few[number] = _take(step, item, task.seconds)
        yield few


def _send_in_batches(caller: Connection, results: Iterable[list[Any]]) -> None:
    batch: list[Any] = []
    sent = time.monotonic()
    for few in results:
        batch += few
        if time.monotonic() - sent > _SECONDS_BETWEEN_BATCHES or any(isinstance(one, _Raised) for one in few):
            caller.send(batch)
            batch, sent = [], time.monotonic()
    if batch:
        caller.send(batch)


def _take(step: Callable[[Any], Any], item: Any, seconds: float) -> Any:
    """Returns the result of a step under a deadline, or what stands for the exception that it raised."""
    _set_deadline(seconds)
    try:
        result = step(item)
    except MemoryError:
        result = Lost("crash", f"needs more than {_MEMORY >> 30} GiB of memory")
    except Exception as error:
        result = _Raised(error)
    _set_deadline(0)
    return result


def _set_deadline(seconds: float) -> None:
    """Starts the timers that end this process; 0 stops them."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * _WALL_PER_CPU_SECOND)
