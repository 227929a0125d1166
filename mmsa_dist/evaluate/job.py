"""A job: one method on one split of one task with one seed, and the files it leaves.

    jobs/<task>/<method>-<split>-seed<n>.json      score, validation curve, a digest of all that it depends on, and that
                                                   of the other file
    jobs/<task>/<method>-<split>-seed<n>.parquet   what it predicts for each test molecule

They are written when the job is done, so that an evaluation that was stopped goes on from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmsa_dist.evaluate.methods import FitPredict, Inputs, Method, Outcome, Progress
from mmsa_dist.evaluate.metrics import learnable_labels, score_labels
from mmsa_dist.evaluate.moleculenet import Task
from mmsa_dist.evaluate.scores import LabelScore, Score, plain, score_from_plain
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData
from mmsa_dist.runtime.files import as_file_name, sha256_of, write_text_atomically
from mmsa_shards.atomic import write_atomically

_VERSION = 6
"""Goes up when the same job would come out otherwise."""
_LIBRARIES = ("torch", "rdkit", "scikit-learn", "numpy")
"""Whose versions an outcome depends on."""


@dataclass(frozen=True)
class Job:
    """A method on one split of a task with one seed."""

    data: TaskData
    method: Method
    split: Split
    seed: int

    @property
    def name(self) -> str:
        """Of its files, without the ending."""
        method = as_file_name(f"{self.method.features} {self.method.model}")
        return f"{self.data.task.name}/{method}-{self.split.name}-seed{self.seed}"

    @property
    def inputs_key(self) -> tuple[str, Callable[[TaskData], Inputs]]:
        """Equal for jobs that see the same inputs."""
        return self.data.task.name, self.method.make

    @property
    def digest(self) -> str:
        """SHA-256 of all that the outcome depends on, but for the kind of processor."""
        task = self.data.task
        parts = (
            *(_VERSION, self.name, task.kind, task.metric, self.data.digest, self.split.digest),
            *(self.method.identity, self.seed, [importlib.metadata.version(name) for name in _LIBRARIES]),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def fit(
    fit_predict: FitPredict, value: Any, data: TaskData, split: Split, seed: int, progress: Progress
) -> tuple[Outcome, float]:
    """Returns the outcome of a job, and the seconds it took.

    Its parts stand for the job, so that a worker elsewhere is not sent the model from which the inputs were made.
    """
    begun = time.monotonic()
    return fit_predict(value, data, split, seed, progress), time.monotonic() - begun


def judge(job: Job, outcome: Outcome, missing: int, seconds: float) -> Score:
    """The score of a job on its test molecules.

    Raises:
        FloatingPointError: a prediction is not finite.
    """
    test, metric = job.split.test, job.data.task.metric
    if not np.isfinite(outcome.predictions[test]).all():
        raise FloatingPointError(
            f"{job.name}: predictions are not finite; look at the vectors of the model, or at the labels of the task"
        )
    learnable = learnable_labels(job.data.labels[job.split.train], job.data.task)
    judged = score_labels(job.data.labels[test], outcome.predictions[test], metric, learnable)
    return Score(
        task=job.data.task.name,
        split=job.split.name,
        split_source=job.split.source,
        split_digest=job.split.digest,
        seed=job.seed,
        features=job.method.features,
        model=job.method.model,
        metric=metric,
        value=judged.value,
        valid=outcome.valid,
        labels_scored=judged.labels_scored,
        labels=job.data.labels.shape[1],
        test_molecules=len(test),
        missing=missing,
        seconds=seconds,
        per_label=tuple(
            LabelScore(name, value, _why_not(job.data.task, of_train, value))
            for name, of_train, value in zip(job.data.label_names, learnable, judged.per_label, strict=True)
        ),
    )


def _why_not(task: Task, learnable: bool, value: float) -> str:
    """Why a label is not judged; empty where it is."""
    if not math.isnan(value):
        return ""
    lacks = "not both classes" if task.kind == "classification" else "no value"
    return f"{lacks} among the {'test' if learnable else 'training'} molecules"


def keep(folder: Path, job: Job, outcome: Outcome, score: Score) -> None:
    """Writes the files of a job that is done; the JSON comes last, and with it the job counts."""
    path = folder / f"{job.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    test = job.split.test
    columns: dict[str, Any] = {"row": test, "smiles": [job.data.smiles[row] for row in test]}
    for number, name in enumerate(job.data.label_names):
        columns[f"{name} (label)"] = job.data.labels[test, number]
        columns[f"{name} (predicted)"] = outcome.predictions[test, number]
    with write_atomically(path.with_suffix(".parquet")) as file:
        pq.write_table(pa.table(columns), file)
    predictions = sha256_of(path.with_suffix(".parquet"))
    about = {
        "digest": job.digest,
        "predictions": predictions,
        "score": plain(score),
        "curve": [plain(epoch) for epoch in outcome.curve],
    }
    write_text_atomically(path, json.dumps(about, allow_nan=False) + "\n")


def kept(folder: Path, job: Job, say: Callable[[str], None]) -> Score | None:
    """The score of a job that is done; None where it is not, or where anything that it depends on has changed.

    Args:
        folder: of the jobs.
        job: that may be done.
        say: is told in a sentence of a file that is damaged, or of predictions that are missing: the job counts for
            nothing.
    """
    path = folder / f"{job.name}.json"
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_bytes())
        if about["digest"] != job.digest:
            return None
        score = score_from_plain(about["score"])
    except (ValueError, KeyError, TypeError, AttributeError):
        say(f"{path} is damaged and holds no job; it is done again")
        return None
    predictions = path.with_suffix(".parquet")
    fault = _fault(predictions, about.get("predictions"))
    if fault:
        say(f"{predictions} {fault}; its job is done again")
        return None
    return dataclasses.replace(score, split_source=job.split.source)  # the same split may lie in another file now


def _fault(predictions: Path, digest: str | None) -> str:
    """What is wrong with a file of predictions; empty where nothing is. Jobs of earlier versions have no digest."""
    try:
        found = sha256_of(predictions)
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return "" if digest in (None, found) else "is damaged"
