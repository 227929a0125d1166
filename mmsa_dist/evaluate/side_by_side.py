"""Parallel jobs in Ray: one per core, or several per GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmsa_dist.evaluate.job import Job, fit
from mmsa_dist.evaluate.methods import FitPredict, Inputs, Outcome
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData
from mmsa_shards.cluster import Board, ray_pool

_JOBS_PER_GPU = 4  # batches of 32 molecules leave most of a GPU idle


def side_by_side(
    parallel: int, jobs: Sequence[Job], inputs: Mapping[object, Inputs], tell: Callable[[str], None]
) -> Iterator[tuple[Job, Outcome, float]]:
    """Runs jobs in the Ray cluster at RAY_ADDRESS, or in a local one, and yields each when it is done.

    Args:
        parallel: jobs at a time; 0 uses all that the cluster has.
        jobs: jobs, in the order in which they start.
        inputs: inputs by `Job.inputs_key`.
        tell: called about every second with the number of parallel jobs and the latest progress message of one.
    """
    if not jobs:  # avoid starting Ray, which takes seconds
        return
    with ray_pool(parallel) as pool:
        board = pool.board()

        def heartbeat() -> None:
            said = board.read()
            tell(f"{parallel or 'all'} in parallel" + (f" · {said}" if said else ""))

        shared = {key: pool.share(made.value) for key, made in inputs.items()}
        data = {name: pool.share(of_name) for name, of_name in {job.data.task.name: job.data for job in jobs}.items()}
        for gpus, numbers in parts(jobs, has_gpus=pool.gpus > 0):
            calls = (
                (
                    *(n, job.name, job.method.fit_predict, shared[job.inputs_key], data[job.data.task.name]),
                    *(job.split, job.seed, board),
                )
                for n, job in ((n, jobs[n]) for n in numbers)
            )
            for number, outcome, seconds in pool.map(_run, calls, gpus=gpus, heartbeat=heartbeat):
                yield jobs[number], outcome, seconds


def parts(jobs: Sequence[Job], *, has_gpus: bool) -> list[tuple[float, list[int]]]:
    """Returns (fraction of a GPU, indices of the jobs that need it); without GPUs all jobs share the cores."""
    if not has_gpus:
        return [(0, list(range(len(jobs))))]
    return [
        (share, [number for number, job in enumerate(jobs) if job.method.gpu == gpu])
        for gpu, share in ((True, 1 / _JOBS_PER_GPU), (False, 0))
    ]


def _run(
    number: int,
    name: str,
    fit_predict: FitPredict,
    value: Any,
    data: TaskData,
    split: Split,
    seed: int,
    board: Board,
) -> tuple[int, Outcome, float]:
    return number, *fit(fit_predict, value, data, split, seed, lambda words: board.write(f"{name} {words}"))
