"""Ray, as far as preparation needs it: tasks with a bounded number in flight. The one file that imports ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from mmsa_shards.errors import PrepareError

R = TypeVar("R")

# What moves between tasks lies in files; the store only carries chunks of text from the driver.
_LOCAL_OBJECT_STORE_BYTES = 256 << 20

# A killed worker costs its task a retry; a task that kills every worker it gets must end some time.
_RETRIES = 5


class Pool:
    """The workers of a Ray cluster.

    Args:
        workers: tasks at a time.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def share(self, value: Any) -> Any:
        """Puts a value where all tasks find it; pass what this returns as an argument."""
        return ray.put(value)

    def map(self, function: Callable[..., R], calls: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """Runs ``function(*call)`` for every call and yields results as they come, in any order.

        Calls are drawn when a worker is free for them, so that memory stays bounded however many there are.
        """
        task = ray.remote(function).options(num_cpus=1, max_retries=_RETRIES)
        running: list[ray.ObjectRef] = []
        try:
            for call in calls:
                if len(running) == self.workers:
                    done, running = ray.wait(running, num_returns=1)
                    yield _result(done[0])
                running.append(task.remote(*call))
            while running:
                done, running = ray.wait(running, num_returns=1)
                yield _result(done[0])
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # the task's own error, without Ray's account of where it ran
    except ray.exceptions.RayError as error:
        raise PrepareError(f"Ray lost a task for good ({error}): run again, what was done is kept") from error


@contextmanager
def ray_pool(workers: int) -> Iterator[Pool]:
    """Gives the workers of the Ray cluster that this process belongs to, or of a local one for the while.

    Args:
        workers: tasks at a time; 0 takes as many as the cluster has cores.
    """
    if ray.is_initialized() or "RAY_ADDRESS" in os.environ:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        yield Pool(workers or int(ray.cluster_resources().get("CPU", 1)))
        return
    # Workers get the driver's sys.path, so they can import what it can, installed or not.
    ray.init(
        num_cpus=workers or len(os.sched_getaffinity(0)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
    )
    try:
        yield Pool(int(ray.cluster_resources()["CPU"]))
    finally:
        ray.shutdown()
