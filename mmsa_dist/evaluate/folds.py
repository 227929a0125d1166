"""Folds of a task's training molecules, on which what is free in a simple model is chosen.

A scaffold split's validation molecules are few and of few scaffolds: what is best on them is chance more often than not
(docs/decisions.md). The training molecules are many times as many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from mmsa_dist.evaluate.splits import scaffolds

FOLDS = 5


def scaffold_folds(smiles: Sequence[str]) -> NDArray[np.int64]:
    """Deals molecules to `FOLDS` folds of about equal size, those of one Bemis-Murcko scaffold to one fold.

    Of a scaffold that has more molecules than a fold, such as none at all, each fold's worth counts as one of its own.

    Args:
        smiles: of n molecules, which parse.

    Returns:
        (n,) number of the fold; fewer than `FOLDS` molecules are of a fold each.
    """
    folds = np.arange(len(smiles))
    if len(smiles) < FOLDS:
        return folds
    largest = len(smiles) // FOLDS
    seen: dict[str, int] = {}
    groups = []
    for scaffold in scaffolds(smiles):
        seen[scaffold] = seen.get(scaffold, -1) + 1
        groups.append(f"{scaffold} {seen[scaffold] // largest}")
    for number, (_, rows) in enumerate(GroupKFold(FOLDS).split(smiles, groups=groups)):
        folds[rows] = number
    return folds
