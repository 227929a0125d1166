"""Ray, as far as we need it: tasks with a bounded number in flight. The one file that imports ray."""

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

# What moves between tasks lies in files; the store carries names of files and the skeletons to be excluded.
_LOCAL_OBJECT_STORE_BYTES = 256 << 20

# A killed worker costs its task a retry, and the task goes on from the files that it has finished; a task that
# kills every worker it gets must end some time.
_RETRIES = 20

_HEARTBEAT_S = 1.0

# So long we wait for a cluster that is only starting. Ray then tries once, which takes it up to half a minute more; its
# twenty tries would be ten minutes of silence.
_PATIENCE_S = 30.0
_ONE_TRY = {"RAY_gcs_server_port_wait_time_s": "1"}

#: The exit status after SIGTERM, by which Slurm and Kubernetes end a job, as shells have it.
TERMINATED = 128 + signal.SIGTERM

# Ray gives its processes 15 to 30 s to come up, which a busy machine can exceed.
_STARTS = 3


class Pool:
    """The workers of a Ray cluster.

    Args:
        workers: tasks at a time; 0 takes all that the cluster has, which may become more or fewer meanwhile.
    """

    def __init__(self, workers: int) -> None:
        self._wanted = workers

    @property
    def workers(self) -> int:
        """Tasks that can run at this time."""
        return self._wanted or max(1, int(ray.cluster_resources().get("CPU", 0)))

    @property
    def gpus(self) -> int:
        """GPUs of the cluster at this time."""
        return int(ray.cluster_resources().get("GPU", 0))

    @property
    def _in_flight(self) -> int:
        # A queue as long as the cluster is wide keeps it busy, and tells an autoscaler that more is wanted.
        return self._wanted or 2 * self.workers

    def share(self, value: Any) -> Any:
        """Puts a value where all tasks find it; pass what this returns as an argument."""
        return ray.put(value)

    def board(self) -> Board:
        """Makes a place for the words of tasks; pass what this returns as an argument."""
        return Board(ray.remote(num_cpus=0)(_Words).remote())

    def map(
        self,
        function: Callable[..., R],
        calls: Iterable[tuple[Any, ...]],
        *,
        gpus: float = 0,
        heartbeat: Callable[[], None] | None = None,
    ) -> Iterator[R]:
        """Runs ``function(*call)`` for every call and yields results as they come, in any order.

        Calls are drawn when a worker is free for them, so that memory stays bounded however many there are. Where
        the caller stops early, running calls end with the connection to Ray, or by themselves if it stays.

        Args:
            function: of module level.
            calls: arguments.
            gpus: that each call needs, or the share of one.
            heartbeat: called every second or so while there is nothing to yield.
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
        """Raises PrepareError where a node of the cluster does not see a folder of this machine."""
        task = ray.remote(_sees)
        nodes = [(node["NodeID"], node["NodeManagerHostname"]) for node in ray.nodes() if node["Alive"]]
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node, _ in nodes]
        answers = [task.options(num_cpus=0, scheduling_strategy=strategy).remote(folder) for strategy in there]
        blind = {name for (_, name), answer in zip(nodes, answers, strict=True) if not _result(answer)}
        if blind:
            raise PrepareError(
                f"{folder} is not seen by node {', '.join(sorted(blind))}: name a folder that all nodes share with "
                "--out or prepare.work_dir"
            )


class _Words:
    """Of a board, in a process of its own."""

    def __init__(self) -> None:
        self._newest = ""

    def write(self, words: str) -> None:
        self._newest = words

    def read(self) -> str:
        return self._newest


class Board:
    """Where tasks say in a few words how far they are, of which the newest stand there.

    Nothing hangs on it: what cannot be written or read is left out.
    """

    def __init__(self, words: Any) -> None:
        self._words = words

    def write(self, words: str) -> None:
        """Says how far a task is, and waits for nothing."""
        self._words.write.remote(words)

    def read(self) -> str:
        """The newest words; empty where there are none, or nobody answers within a second."""
        answer = self._words.read.remote()
        try:
            return str(ray.get(answer, timeout=_HEARTBEAT_S))
        except ray.exceptions.RayError:
            return ""


def _sees(folder: Path) -> bool:
    return folder.is_dir()


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # the task's own error, without Ray's account of where it ran
    except ray.exceptions.RayError as error:
        raise PrepareError(f"Ray lost a task for good ({error}): run again, what was done is kept") from error


@contextmanager
def ray_pool(workers: int, say: Callable[[str], None] | None = None) -> Iterator[Pool]:
    """Gives the workers of the Ray cluster that RAY_ADDRESS names, or of a local one for the while.

    Leaving ends what still runs, as Ray ends the tasks of a driver that is gone. They are not cancelled one by one:
    Ray aborts the driver where a task ends while it is being cancelled (its pull request 54798 mends one such case).
    A connection that the caller has made stays, and with it what still runs.

    SIGTERM ends the block as Ctrl-C does, by SystemExit with the status `TERMINATED`.

    Args:
        workers: tasks at a time; 0 takes what the cluster has.
        say: told what is waited for, in a sentence.

    Raises:
        PrepareError: there is no such cluster, or none can be started.
    """
    if ray.is_initialized():
        yield Pool(workers)
        return
    # Ray starts in a thread of its own. In the main one Python's handler of SIGTERM would be Ray's, and what a handler
    # raises there while Ray forks is lost. The thread stays, as the processes that it has started die with it.
    with ended_by_sigterm() as take_signal, ThreadPoolExecutor(1) as starter:
        try:
            if address := os.environ.get("RAY_ADDRESS"):
                _join(starter, address, say)
            else:
                _start_local(starter, workers or len(os.sched_getaffinity(0)))
            take_signal()  # which Ray's libraries take when they start
            yield Pool(workers)
        finally:
            ray.shutdown()


def _join(starter: Executor, address: str, say: Callable[[str], None] | None) -> None:
    if say is not None:
        say(f"connecting to the Ray cluster at RAY_ADDRESS={address}")
    added = {name: value for name, value in _ONE_TRY.items() if name not in os.environ}
    os.environ.update(added)
    try:
        _wait_for_port(address)
        _init(starter)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError and others, as Ray has it
        ray.shutdown()
        what = (str(error).strip() or repr(error)).splitlines()[-1]
        raise PrepareError(
            f"cannot connect to the Ray cluster at RAY_ADDRESS={address} ({what}): see that it runs and is reached "
            "from here, or unset RAY_ADDRESS for a Ray on this machine alone"
        ) from error
    finally:
        for name in added:
            del os.environ[name]


def _wait_for_port(address: str) -> None:
    """Returns when something listens at a plain ``host:port``, at once for other addresses.

    Raises:
        OSError: nothing does for so long that it will not.
    """
    if "://" in address or (place := urlsplit(f"//{address}")).port is None:
        return
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection((place.hostname, place.port), timeout=_PATIENCE_S / 3).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_HEARTBEAT_S)


@contextmanager
def ended_by_sigterm() -> Iterator[Callable[[], None]]:
    """Ends the block at SIGTERM as at Ctrl-C, by SystemExit with the status `TERMINATED`.

    Yields:
        What puts the handler there again, should another have been put there since.
    """
    told = False

    def end(*_: object) -> NoReturn:
        nonlocal told
        told = True
        raise KeyboardInterrupt  # which Ray lets pass as it is; of a SystemExit it makes another, with status 1

    def take_signal() -> None:
        signal.signal(signal.SIGTERM, end)

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)
    take_signal()
    try:
        yield take_signal
    except KeyboardInterrupt:
        if told:
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _init(starter: Executor, **options: Any) -> None:
    """Calls ``ray.init``, and waits for it also where the caller is interrupted."""
    started = starter.submit(ray.init, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        started.result()
    finally:
        wait([started])


def _start_local(starter: Executor, num_cpus: int) -> None:
    for attempt in range(_STARTS):
        try:
            # Workers get the driver's sys.path, so they can import what it can, installed or not.
            _init(
                starter,
                address="local",  # and not the cluster that somebody has started on this machine
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            )
            return
        except Exception as error:  # Ray has no narrower class for a node that does not come up in time
            ray.shutdown()
            if attempt == _STARTS - 1:
                raise PrepareError(
                    f"Ray does not start on this machine ({error}): stop other work and run again"
                ) from error
