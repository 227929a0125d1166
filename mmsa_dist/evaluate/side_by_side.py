"""Jobs in Ray: as many at a time as there are cores, or several to a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmsa_dist.evaluate.job import Job, fit
from mmsa_dist.evaluate.methods import Inputs, Outcome
from mmsa_shards.cluster import ray_pool

_JOBS_PER_GPU = 4  # batches of 32 molecules leave most of one idle


def side_by_side(
    jobs: Sequence[Job], inputs: Mapping[object, Inputs], parallel: int, heartbeat: Callable[[], None]
) -> Iterator[tuple[Job, Outcome, float]]:
    """Runs jobs in the Ray cluster that RAY_ADDRESS names, or in a local one, and yields each when it is done.

    Args:
        jobs: in the order in which they are begun.
        inputs: by `Job.inputs_key`.
        parallel: jobs at a time; 0 takes what the cluster has.
        heartbeat: called every second or so.
    """
    with ray_pool(parallel) as pool:
        shared = {key: pool.share(made.value) for key, made in inputs.items()}
        for gpu in (True, False):
            chosen = [number for number, job in enumerate(jobs) if job.method.gpu == gpu]
            calls = ((number, jobs[number], shared[jobs[number].inputs_key]) for number in chosen)
            gpus = 1 / _JOBS_PER_GPU if gpu and pool.gpus else 0
            for number, outcome, seconds in pool.map(_run, calls, gpus=gpus, heartbeat=heartbeat):
                yield jobs[number], outcome, seconds


def _run(number: int, job: Job, value: Any) -> tuple[int, Outcome, float]:
    return number, *fit(job, value, lambda words: None)
