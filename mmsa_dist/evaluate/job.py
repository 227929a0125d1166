"""A job: one method on one split of one task with one seed, and the files it writes.

    jobs/<task>/<method>-<split>-seed<n>.json      score, validation curve, a digest of everything it depends on, and
                                                   the digest of the other file
    jobs/<task>/<method>-<split>-seed<n>.parquet   predictions for the test molecules

They are written when the job is done, so that an interrupted evaluation can resume.
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
"""Incremented when the outcome of the same job would change."""
_LIBRARIES = ("torch", "rdkit", "scikit-learn", "scipy", "numpy")
"""Libraries whose versions affect an outcome."""


@dataclass(frozen=True)
class Job:
    """One method on one split of a task with one seed."""

    data: TaskData
    method: Method
    split: Split
    seed: int

    @property
    def name(self) -> str:
        """Path of its files, relative and without suffix."""
        method = as_file_name(f"{self.method.features} {self.method.model}")
        return f"{self.data.task.name}/{method}-{self.split.name}-seed{self.seed}"

    @property
    def inputs_key(self) -> tuple[str, Callable[[TaskData], Inputs]]:
        """Key that is equal for jobs with the same inputs."""
        return self.data.task.name, self.method.make

    @property
    def digest(self) -> str:
        """SHA-256 of everything that its files depend on, except the kind of processor."""
        task, method = self.data.task, self.method
        parts = (
            *(_VERSION, self.name, task.kind, task.metric, self.data.digest, self.split.digest),
            *(method.identity, self.seed, [importlib.metadata.version(name) for name in _LIBRARIES]),
            *(method.features, method.model, self.data.label_names),  # as tables show them
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def fit(
    fit_predict: FitPredict, value: Any, data: TaskData, split: Split, seed: int, progress: Progress
) -> tuple[Outcome, float]:
    """Runs a job and returns its outcome and the seconds it took.

    It takes the parts of a job instead of the job, so that remote workers are not sent the model behind the inputs.
    """
    begun = time.monotonic()
    return fit_predict(value, data, split, seed, progress), time.monotonic() - begun


def judge(job: Job, outcome: Outcome, missing: int, seconds: float) -> Score:
    """Returns the score of a job on its test molecules.

    Raises:
        FloatingPointError: a prediction is not finite.
    """
    test, metric = job.split.test, job.data.task.metric
    if not np.isfinite(outcome.predictions[test]).all():
        raise FloatingPointError(
            f"{job.name}: predictions are not finite; check the vectors of the model and the labels of the task"
        )
    learnable = learnable_labels(job.data.labels[job.split.train], job.data.task)
    test_scores = score_labels(job.data.labels[test], outcome.predictions[test], metric, learnable)
    return Score(
        task=job.data.task.name,
        split=job.split.name,
        split_source=job.split.source,
        split_digest=job.split.digest,
        seed=job.seed,
        features=job.method.features,
        model=job.method.model,
        metric=metric,
        value=test_scores.value,
        valid=outcome.valid,
        labels_scored=test_scores.labels_scored,
        labels=job.data.labels.shape[1],
        test_molecules=len(test),
        missing=missing,
        seconds=seconds,
        per_label=tuple(
            LabelScore(name, value, _why_unscored(job.data.task, of_train, value))
            for name, of_train, value in zip(job.data.label_names, learnable, test_scores.per_label, strict=True)
        ),
    )


def _why_unscored(task: Task, learnable: bool, value: float) -> str:
    """Returns why a label is not scored; empty if it is."""
    if not math.isnan(value):
        return ""
    lacks = "not both classes" if task.kind == "classification" else "no value"
    return f"{lacks} among the {'test' if learnable else 'training'} molecules"


def keep(folder: Path, job: Job, outcome: Outcome, score: Score) -> None:
    """Writes the files of a finished job; the JSON comes last and marks the job as done."""
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
    """Returns the score of a finished job; None if it is not done or anything it depends on has changed.

    Args:
        folder: folder of the jobs.
        job: job to look up.
        say: called with a sentence if a file is damaged or predictions are missing; the job then counts as not done.
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
        say(f"{path} is damaged; its job runs again")
        return None
    predictions = path.with_suffix(".parquet")
    fault = _fault(predictions, about.get("predictions"))
    if fault:
        say(f"{predictions} {fault}; its job runs again")
        return None
    return dataclasses.replace(score, split_source=job.split.source)  # the same split may now come from another file


def _fault(predictions: Path, digest: str | None) -> str:
    """Returns what is wrong with a file of predictions; empty if nothing. Jobs of earlier versions have no digest."""
    try:
        found = sha256_of(predictions)
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return "" if digest in (None, found) else "is damaged"
