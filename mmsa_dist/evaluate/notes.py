"""Caveats that a reader needs to interpret the numbers of a table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rdkit import Chem, rdBase

from mmsa_dist.evaluate.markdown import code_span
from mmsa_dist.evaluate.methods import FINE_TUNED
from mmsa_dist.evaluate.metrics import learnable_labels
from mmsa_dist.evaluate.moleculenet import MetricName
from mmsa_dist.evaluate.scores import PER_LABEL, Score
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

_MAX_NAMED = 5
"""Labels or left-out rows that a note names; the files name all."""
_MAX_SMILES = 40
"""Characters shown of an invalid SMILES, which may be a whole file."""
_AMONG = "among the training and the test molecules"


@dataclass(frozen=True)
class Findings:
    """Findings of a check on the molecules of tasks."""

    sentences: tuple[str, ...] = ()
    """Notes for a reader of the results."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same as data, for ``results.json``."""


def notes_on(scores: Sequence[Score], splits: Sequence[tuple[Split, TaskData]]) -> list[str]:
    """Returns notes on rows, labels, seeds and molecules that do not enter `scores`."""
    return [
        *_rows_left_out(splits),
        *_not_compared(splits),
        *_seen_in_training(splits),
        *_several_errors(splits),
        *_unvalidated_labels(splits, fine_tuned=any(score.model == FINE_TUNED for score in scores)),
        *_labels_left_out(scores),
        *_missing_molecules(scores),
    ]


def _rows_left_out(splits: Sequence[tuple[Split, TaskData]]) -> Iterator[str]:
    for data in {data.task.name: data for _, data in splits}.values():
        if data.dropped:
            rows = [f"{row + 1} {code_span(_short(text))}" for row, text in data.dropped]
            yield (
                f"{data.task.name}: {len(rows)} of {len(data) + len(rows)} rows do not parse or have no atoms and are "
                f"left out (record {_first(rows)})"
            )


def _not_compared(splits: Sequence[tuple[Split, TaskData]]) -> Iterator[str]:
    for split, data in splits:
        if not split.compared:
            yield (
                f"{data.task.name}{split.which}: the file of the split has no SMILES, so only the number of molecules "
                "shows that it is of these, in this order"
            )


def _seen_in_training(splits: Sequence[tuple[Split, TaskData]]) -> Iterator[str]:
    """Yields notes on molecules that several rows hold, in two parts; a scaffold split keeps such rows together."""
    canonical: dict[str, list[str]] = {}
    for split, data in splits:
        if split.name.endswith("scaffold"):
            continue
        if data.task.name not in canonical:
            with rdBase.BlockLogs():
                canonical[data.task.name] = [Chem.CanonSmiles(text) for text in data.smiles]
        words = canonical[data.task.name]
        trained = {words[row] for row in split.train}
        if seen := sum(words[row] in trained for row in split.test):
            yield (
                f"{data.task.name}{split.which}: {seen} of {len(split.test)} test molecules are training molecules "
                "too, in other rows of the file; merge such rows, or use a scaffold split"
            )


def _several_errors(splits: Sequence[tuple[Split, TaskData]]) -> Iterator[str]:
    for data in {data.task.name: data for _, data in splits}.values():
        if data.task.kind == "regression" and len(data.label_names) > 1:
            yield (
                f"{data.task.name}: its number is the mean of the errors of {len(data.label_names)} labels, and the "
                "label with the largest numbers decides it; evaluate labels of different units one by one"
            )


def _unvalidated_labels(splits: Sequence[tuple[Split, TaskData]], *, fine_tuned: bool) -> Iterator[str]:
    for split, data in splits:
        learnable, seen = (learnable_labels(data.labels[rows], data.task) for rows in (split.train, split.valid))
        missing = [name for name, has_both in zip(data.label_names, learnable & seen, strict=True) if not has_both]
        if missing:
            what = "a class" if data.task.kind == "classification" else "values"
            nothing_chooses = fine_tuned and len(missing) == len(data.label_names)
            last = "; fine-tuning uses its last epoch" if nothing_chooses else ""
            yield (
                f"{data.task.name}{split.which}: {len(missing)} of {len(data.label_names)} labels lack {what} among "
                f"the training or the validation molecules and have no validation value: {_first(missing)}{last}"
            )


def _labels_left_out(scores: Sequence[Score]) -> Iterator[str]:
    """Yields notes on labels that lack values or a second class, one for all seeds that lack the same."""
    seeds: dict[str, set[int]] = defaultdict(set)
    lacking: dict[tuple[str, MetricName, int, int, tuple[str, ...]], set[int]] = defaultdict(set)
    for score in scores:
        seeds[score.task].add(score.seed)
        scored = 0 if math.isnan(score.value) else score.labels_scored
        if scored < score.labels:
            left_out = tuple(label.label for label in score.per_label if label.reason)
            lacking[score.task, score.metric, scored, score.labels, left_out].add(score.seed)
    for (task, metric, scored, labels, left_out), without in lacking.items():
        of_all = without == seeds[task]
        where = task if of_all else f"{task}, seed {', '.join(map(str, sorted(without)))}"
        have = "both classes" if metric == "roc_auc" else "values"
        if scored:
            counts = f"{scored} of {labels} labels have {have} {_AMONG}"
            names = f": {_first(left_out)}; {PER_LABEL} says why" if left_out else ""
            yield f"{where}: {counts}; the others are left out of the mean{names}"
        elif of_all:
            yield f"{where}: no label has {have} {_AMONG}; it is left out of all means"
        else:
            covered = f"{len(seeds[task]) - len(without)} of {len(seeds[task])} seeds"
            yield f"{where}: no label has {have} {_AMONG}; the numbers of {task} cover {covered}"


def _missing_molecules(scores: Sequence[Score]) -> Iterator[str]:
    for task, features, missing in sorted({(s.task, s.features, s.missing) for s in scores if s.missing}):
        yield f"{task}: {features} cannot represent {missing} molecules; they get the mean prediction"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SMILES else f"{text[:_MAX_SMILES]}..."


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
