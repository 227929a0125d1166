"""Folds of a task's training molecules, for choosing the hyperparameters of simple models.

The validation molecules of a scaffold split are few and cover few scaffolds, so what is best on them is mostly chance
(docs/decisions.md). The training molecules are far more numerous. The folds separate them the way the split separates
training from test molecules, so that hyperparameters are chosen for the same distribution shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, KFold

from mmsa_dist.evaluate.splits import Split, scaffolds
from mmsa_dist.evaluate.tasks import TaskData

FOLDS = 5

_MAX_SHARED = 0.05  # of the test molecules: a scaffold split on another form of the SMILES may share a few


def folds_of(split: Split, data: TaskData) -> NDArray[np.int64]:
    """Assigns the n training molecules of a split to `FOLDS` folds of about equal size.

    Folds keep scaffolds together if the split does. If more than a few test molecules share a ring scaffold with
    training molecules, as in a random split, folds are random.

    Returns:
        (n,) fold numbers; fewer than `FOLDS` molecules get one fold each.
    """
    if len(split.train) < FOLDS:
        return np.arange(len(split.train))
    scaffold_of = _scaffolds(data.smiles)
    train, test = ([scaffold_of[row] for row in rows] for rows in (split.train, split.test))
    seen = set(train) - {""}
    if sum(scaffold in seen for scaffold in test) <= _MAX_SHARED * len(test):
        return scaffold_folds(train)
    return _fold_numbers(KFold(FOLDS, shuffle=True, random_state=0).split(train), len(train))


@lru_cache(maxsize=1)
def _scaffolds(smiles: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(scaffolds(smiles))  # cached, since every method of a task needs them


def scaffold_folds(scaffold_of: Sequence[str]) -> NDArray[np.int64]:
    """Assigns n >= `FOLDS` molecules to folds such that each Bemis-Murcko scaffold stays in one fold.

    A scaffold with more molecules than a fold, such as the empty one, is divided into groups of the size of a fold.

    Args:
        scaffold_of: n scaffolds, as SMILES.

    Returns:
        (n,) fold numbers.
    """
    largest = len(scaffold_of) // FOLDS
    seen: dict[str, int] = {}
    groups = []
    for scaffold in scaffold_of:
        seen[scaffold] = seen.get(scaffold, -1) + 1
        groups.append(f"{scaffold} {seen[scaffold] // largest}")
    return _fold_numbers(GroupKFold(FOLDS).split(groups, groups=groups), len(groups))


def _fold_numbers(parts: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], n: int) -> NDArray[np.int64]:
    """Returns the number of the fold that each of the n molecules is held out in."""
    folds = np.empty(n, dtype=np.int64)
    for number, (_, rows) in enumerate(parts):
        folds[rows] = number
    return folds
