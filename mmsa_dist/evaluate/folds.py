"""Folds of a task's training molecules, on which what is free in a simple model is chosen.

A scaffold split's validation molecules are few and of few scaffolds: what is best on them is chance more often than not
(docs/decisions.md). The training molecules are many times as many. They are parted among themselves as the split parts
them from the test molecules, so that what is chosen is chosen for such a step away.
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

_SHARED = 0.05  # of the test molecules; a few a scaffold split may share, where it sees SMILES in another form


def folds_of(split: Split, data: TaskData) -> NDArray[np.int64]:
    """Deals the n training molecules of a split to `FOLDS` folds of about equal size.

    Where the split keeps scaffolds together, so do the folds; where more than a few test molecules have a ring scaffold
    of training molecules, as in a random split, folds are random.

    Returns:
        (n,) number of the fold; fewer than `FOLDS` molecules are of a fold each.
    """
    if len(split.train) < FOLDS:
        return np.arange(len(split.train))
    scaffold_of = _scaffolds(data.smiles)
    learned, judged = ([scaffold_of[row] for row in rows] for rows in (split.train, split.test))
    seen = set(learned) - {""}
    if sum(scaffold in seen for scaffold in judged) <= _SHARED * len(judged):
        return scaffold_folds(learned)
    return _numbered(KFold(FOLDS, shuffle=True, random_state=0).split(learned), len(learned))


@lru_cache(maxsize=1)
def _scaffolds(smiles: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(scaffolds(smiles))  # every method of a task asks for them


def scaffold_folds(scaffold_of: Sequence[str]) -> NDArray[np.int64]:
    """Deals n molecules, at least `FOLDS`, so that those of one Bemis-Murcko scaffold are of one fold.

    Of a scaffold that has more molecules than a fold, such as none at all, each fold's worth counts as one of its own.

    Args:
        scaffold_of: n scaffolds, as SMILES.

    Returns:
        (n,) number of the fold.
    """
    largest = len(scaffold_of) // FOLDS
    seen: dict[str, int] = {}
    groups = []
    for scaffold in scaffold_of:
        seen[scaffold] = seen.get(scaffold, -1) + 1
        groups.append(f"{scaffold} {seen[scaffold] // largest}")
    return _numbered(GroupKFold(FOLDS).split(groups, groups=groups), len(groups))


def _numbered(parts: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], n: int) -> NDArray[np.int64]:
    """(n,) the number of the part that each molecule is left out of."""
    folds = np.empty(n, dtype=np.int64)
    for number, (_, rows) in enumerate(parts):
        folds[rows] = number
    return folds
