"""An evaluation: every method on every task, split and seed, in parallel, each job once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from mmsa_dist.evaluate.job import Job, fit, judge, keep, kept
from mmsa_dist.evaluate.methods import Inputs, Method, Outcome
from mmsa_dist.evaluate.notes import Findings
from mmsa_dist.evaluate.provenance import surroundings
from mmsa_dist.evaluate.results import Results
from mmsa_dist.evaluate.split_files import choose_split
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

JOBS = "jobs"

Runner = Callable[[Sequence[Job], Mapping[object, Inputs], Callable[[str], None]], Iterator[tuple[Job, Outcome, float]]]
Report = Callable[[int, int, str], None]
"""Called with (jobs done, total jobs, current step)."""
Check = Callable[[Sequence[tuple[TaskData, Split]]], Findings]
"""Maps tasks with their splits to findings about them."""


def run_evaluation(
    methods: Sequence[Method],
    tasks: Sequence[TaskData],
    *,
    out: str | os.PathLike[str],
    split: str = "hu-scaffold",
    seeds: Sequence[int] = (0, 1, 2),
    resume: bool = False,
    parallel: int = 1,
    report: Report | None = None,
    about: Mapping[str, Any] | None = None,
    check: Check | None = None,
) -> Results:
    """Evaluates `methods` on `tasks` and writes the results, splits and jobs to `out`.

    A method without randomness runs once per distinct split, not once per seed.

    Args:
        methods: rows of the table.
        tasks: tasks to predict.
        out: output folder.
        split: name of the split, or a file or folder of splits.
        seeds: seeds of the random split and of the methods.
        resume: whether to keep finished jobs in `out`; otherwise they run again.
        parallel: jobs at a time; 1 runs without Ray, 0 uses all that the cluster has.
        report: called with the progress.
        about: what is evaluated and how, from `mmsa_dist.evaluate.provenance.judged`, for ``results.json``; split,
            seeds, libraries, machine and command are added.
        check: called before any job runs; its findings become part of the results.

    Raises:
        ValueError: no task, no seed, an unknown split, a task too small to split, or duplicate task or method names.
        OSError: `out` is a file or not writable.
        FloatingPointError: a loss or a prediction is not finite.
    """
    from mmsa_dist.evaluate.plot import plot_results  # fail before hours of work: matplotlib or Ray may be missing

    run = _runner(parallel)
    jobs = all_jobs(methods, tasks, split, seeds)
    used = {(job.data.task.name, job.split.digest): (job.split, job.data) for job in jobs}
    if Path(out).exists() and not Path(out).is_dir():
        raise NotADirectoryError(f"the output folder {out} is a file; name another")
    folder = Path(out) / JOBS
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):  # fail before hours of work if the folder is not writable
        pass
    found = check([(data, of_task) for of_task, data in used.values()]) if check is not None else Findings()
    damaged: list[str] = []
    scores = {job.name: s for job in jobs if resume and (s := kept(folder, job, damaged.append)) is not None}

    def tell(words: str) -> None:
        if report is not None:
            report(len(scores), len(jobs), words)

    todo = [job for job in jobs if job.name not in scores]
    inputs = _inputs(todo, tell)
    for job, outcome, seconds in run(todo, inputs, tell):
        scores[job.name] = judge(job, outcome, inputs[job.inputs_key].missing, seconds)
        keep(folder, job, outcome, scores[job.name])
        tell(job.name)
    made = {"split": split, "seeds": list(seeds), "environment": surroundings(), **(about or {}), **found.facts}
    sentences = (*found.sentences, *damaged)
    results = Results(tuple(scores[job.name] for job in jobs), tuple(used.values()), made, sentences)
    results.write(out)
    plot_results(results, Path(out) / "results.png")
    return results


def _runner(parallel: int) -> Runner:
    if parallel == 1:
        return _sequentially
    from mmsa_dist.evaluate.side_by_side import side_by_side

    return partial(side_by_side, parallel)


def all_jobs(methods: Sequence[Method], tasks: Sequence[TaskData], split: str, seeds: Sequence[int]) -> list[Job]:
    """Returns the jobs of an evaluation; arguments and errors as for `run_evaluation`."""
    if not seeds or not tasks:
        raise ValueError(f"there must be at least one {'task' if seeds else 'seed'}")
    _check_names("tasks", [data.task.name for data in tasks])
    jobs = [job for data in tasks for job in _jobs(methods, data, _by_seed(data, split, seeds))]
    _check_names("jobs", [job.name for job in jobs])
    return jobs


def _inputs(jobs: Sequence[Job], tell: Callable[[str], None]) -> dict[object, Inputs]:
    """Returns the inputs of the jobs, by `Job.inputs_key`."""
    inputs: dict[object, Inputs] = {}
    for job in jobs:
        if job.inputs_key not in inputs:
            tell(f"{job.data.task.name}: {job.method.features}")
            inputs[job.inputs_key] = job.method.make(job.data)
    return inputs


def _by_seed(data: TaskData, choice: str, seeds: Sequence[int]) -> dict[int, Split]:
    """Returns the split of each seed; a seedless one is made once, since scaffolds of many molecules are slow."""
    splits: dict[int, Split] = {}
    made: Split | None = None
    for seed in seeds:
        if made is None or made.seed is not None or made.source is not None:
            made = choose_split(data, choice, seed)
        splits[seed] = made
    return splits


def _jobs(methods: Sequence[Method], data: TaskData, splits: Mapping[int, Split]) -> Iterator[Job]:
    seen: set[str] = set()
    for seed, split in splits.items():
        for method in methods:
            if method.seeded or split.digest not in seen:
                yield Job(data, method, split, seed)
        seen.add(split.digest)


def _sequentially(
    jobs: Sequence[Job], inputs: Mapping[object, Inputs], tell: Callable[[str], None]
) -> Iterator[tuple[Job, Outcome, float]]:
    """Runs jobs in this process and yields each when it is done."""
    for job in jobs:
        value, progress = inputs[job.inputs_key].value, partial(_report_job, tell, job.name)
        yield job, *fit(job.method.fit_predict, value, job.data, job.split, job.seed, progress)


def _report_job(tell: Callable[[str], None], name: str, words: str) -> None:
    tell(f"{name} {words}")


def _check_names(what: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two {what} are called {twice!r} and cannot be told apart: rename one of them")
