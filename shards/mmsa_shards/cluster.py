"""A thin layer over Ray: tasks with a bounded number in flight. The only file that imports ray."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmsa_shards.errors import PrepareError

R = TypeVar("R")

# Tasks exchange data through files; the store holds only file names and the skeletons to be excluded.
_LOCAL_OBJECT_STORE_BYTES = 256 << 20

# A killed worker costs its task a retry, which continues from the files that are finished; a task that kills every
# worker must fail eventually.
_RETRIES = 20

_HEARTBEAT_S = 1.0

# How long to wait for a cluster that is still starting. Ray then tries once, which takes up to half a minute more; its
# default of twenty tries would mean ten minutes of silence.
_CLUSTER_TIMEOUT_S = 30.0
_SINGLE_TRY = {"RAY_gcs_server_port_wait_time_s": "1"}

#: Exit status after SIGTERM, with which Slurm and Kubernetes end a job, by the convention of shells.
TERMINATED = 128 + signal.SIGTERM

# Attempts: Ray allows its processes 15 to 30 s to start, which a busy machine can exceed.
_START_ATTEMPTS = 3


class Pool:
    """The workers of a Ray cluster.

    Args:
        workers: tasks at a time; 0 uses all CPUs of the cluster, whose number may change meanwhile.
    """

    def __init__(self, workers: int) -> None:
        self._wanted = workers

    @property
    def workers(self) -> int:
        """Number of tasks that can run at present."""
        return self._wanted or max(1, int(ray.cluster_resources().get("CPU", 0)))

    @property
    def gpus(self) -> int:
        """Number of GPUs of the cluster at present."""
        return int(ray.cluster_resources().get("GPU", 0))

    @property
    def _in_flight(self) -> int:
        # A queue of as many tasks as there are CPUs keeps the cluster busy, and makes an autoscaler add nodes.
        return self._wanted or 2 * self.workers

    def share(self, value: Any) -> Any:
        """Stores a value for all tasks; pass the returned reference as an argument."""
        return ray.put(value)

    def board(self) -> Board:
        """Returns a new board for progress messages, to be passed to tasks as an argument."""
        return Board(ray.remote(num_cpus=0)(_LatestMessage).remote())

    def map(
        self,
        function: Callable[..., R],
        calls: Iterable[tuple[Any, ...]],
        *,
        gpus: float = 0,
        heartbeat: Callable[[], None] | None = None,
    ) -> Iterator[R]:
        """Runs ``function(*call)`` for every call and yields results as they complete, in any order.

        Calls are generated as workers become free, so that memory stays bounded however many there are. If the caller
        stops early, running calls end with the connection to Ray, or by themselves if it stays.

        Args:
            function: a module-level function.
            calls: tuples of arguments.
            gpus: number of GPUs per call, possibly a fraction.
            heartbeat: called about every second while waiting, and before each result.

        Raises:
            PrepareError: the cluster has no GPU and `gpus` is not 0, or Ray lost a task.
        """
        if gpus and not self.gpus:
            raise PrepareError("no node of this Ray cluster has a GPU: add one, or set prepare.conformer_backend=rdkit")
        task = ray.remote(function).options(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)
        running: list[ray.ObjectRef] = []

        def finished() -> ray.ObjectRef:
            nonlocal running
            while True:
                done, running = ray.wait(running, num_returns=1, timeout=_HEARTBEAT_S)
                if heartbeat is not None:
                    heartbeat()
                if done:
                    return done[0]

        for call in calls:
            if len(running) >= self._in_flight:
                yield _result(finished())
            running.append(task.remote(*call))
        while running:
            yield _result(finished())

    def check_that_all_see(self, folder: Path) -> None:
        """Raises PrepareError if a node of the cluster cannot see a folder of this machine."""
        task = ray.remote(_can_see)
        nodes = [(node["NodeID"], node["NodeManagerHostname"]) for node in ray.nodes() if node["Alive"]]
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node, _ in nodes]
        answers = [task.options(num_cpus=0, scheduling_strategy=strategy).remote(folder) for strategy in there]
        blind = {name for (_, name), answer in zip(nodes, answers, strict=True) if not _result(answer)}
        if blind:
            raise PrepareError(
                f"{folder} is not seen by node {', '.join(sorted(blind))}: name a folder that all nodes share with "
                "--out or prepare.work_dir"
            )


class _LatestMessage:
    """The actor of a `Board`, which holds the latest message."""

    def __init__(self) -> None:
        self._message = ""

    def write(self, words: str) -> None:
        self._message = words

    def read(self) -> str:
        return self._message


class Board:
    """Best-effort store of the latest progress message of all tasks: messages may be lost."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def write(self, words: str) -> None:
        """Replaces the message without waiting."""
        self._actor.write.remote(words)

    def read(self) -> str:
        """Returns the latest message; empty if there is none, or it cannot be read within a second."""
        answer = self._actor.read.remote()
        try:
            return str(ray.get(answer, timeout=_HEARTBEAT_S))
        except ray.exceptions.RayError:
            return ""


def _can_see(folder: Path) -> bool:
    return folder.is_dir()


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # the task's own error, without Ray's account of where it ran
    except ray.exceptions.RayError as error:
        raise PrepareError(f"Ray lost a task for good ({error}): run again, finished work is kept") from error


@contextmanager
def ray_pool(workers: int, say: Callable[[str], None] | None = None) -> Iterator[Pool]:
    """Yields the workers of the Ray cluster that RAY_ADDRESS names, or of a temporary local one.

    Leaving the block ends running tasks, as Ray ends the tasks of a disconnected driver. They are not cancelled one by
    one: Ray aborts the driver if a task ends while it is being cancelled (its pull request 54798 fixes one such case).
    A connection that the caller had opened stays open, and its tasks go on running.

    SIGTERM ends the block as Ctrl-C does, but by SystemExit with the status `TERMINATED`.

    Args:
        workers: tasks at a time; 0 uses all CPUs of the cluster.
        say: called with a sentence when the run waits for something.

    Raises:
        PrepareError: the cluster cannot be reached, or a local one cannot be started.
    """
    if ray.is_initialized():
        yield Pool(workers)
        return
    # Ray starts in a thread of its own. In the main thread Ray would install its own SIGTERM handler, and an exception
    # raised by a handler while Ray forks is lost. The thread stays alive, as the processes that it started die with it.
    with ended_by_sigterm() as take_signal, ThreadPoolExecutor(1) as starter:
        try:
            if address := os.environ.get("RAY_ADDRESS"):
                _join(starter, address, say)
            else:
                _start_local(starter, workers or len(os.sched_getaffinity(0)))
            take_signal()  # Ray's libraries replace the handler when they start
            yield Pool(workers)
        finally:
            ray.shutdown()


def _join(starter: Executor, address: str, say: Callable[[str], None] | None) -> None:
    if say is not None:
        say(f"connecting to the Ray cluster at RAY_ADDRESS={address}")
    added = {name: value for name, value in _SINGLE_TRY.items() if name not in os.environ}
    os.environ.update(added)
    try:
        _wait_for_port(address)
        _init(starter)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and others
        ray.shutdown()
        what = (str(error).strip() or repr(error)).splitlines()[-1]
        raise PrepareError(
            f"cannot connect to the Ray cluster at RAY_ADDRESS={address} ({what}): check that it runs and is reachable "
            "from here, or unset RAY_ADDRESS to run Ray on this machine alone"
        ) from error
    finally:
        for name in added:
            del os.environ[name]


def _wait_for_port(address: str) -> None:
    """Waits until something listens at a plain ``host:port``; returns at once for other addresses.

    Raises:
        OSError: nothing listens there after `_CLUSTER_TIMEOUT_S`.
    """
    if "://" in address or (place := urlsplit(f"//{address}")).port is None:
        return
    deadline = time.monotonic() + _CLUSTER_TIMEOUT_S
    while True:
        try:
            socket.create_connection((place.hostname, place.port), timeout=_CLUSTER_TIMEOUT_S / 3).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_HEARTBEAT_S)


@contextmanager
def ended_by_sigterm() -> Iterator[Callable[[], None]]:
    """Ends the block at SIGTERM as at Ctrl-C, but by SystemExit with the status `TERMINATED`.

    Yields:
        A function that installs the handler again, in case another one has replaced it.
    """
    by_sigterm = False

    def end(*_: object) -> NoReturn:
        nonlocal by_sigterm
        by_sigterm = True
        raise KeyboardInterrupt  # which Ray passes on; it replaces a SystemExit by one with status 1

    def take_signal() -> None:
        signal.signal(signal.SIGTERM, end)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)
    take_signal()
    try:
        yield take_signal
    except KeyboardInterrupt:
        if by_sigterm:
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _init(starter: Executor, **options: Any) -> None:
    """Calls ``ray.init``, and waits for it even if the caller is interrupted."""
    started = starter.submit(ray.init, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        started.result()
    finally:
        wait([started])


def _start_local(starter: Executor, num_cpus: int) -> None:
    for attempt in range(_START_ATTEMPTS):
        try:
            # Workers get the driver's sys.path, so they can import whatever it can, installed or not.
            _init(
                starter,
                address="local",  # not a cluster that somebody has started on this machine
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            )
            return
        except Exception as error:  # Ray has no narrower class for a node that does not start in time
            ray.shutdown()
            if attempt == _START_ATTEMPTS - 1:
                raise PrepareError(
                    f"Ray does not start on this machine ({error}): stop other work and run again"
                ) from error
