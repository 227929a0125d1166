"""How predictions are judged: scikit-learn's metrics, over labels of which some are missing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, roc_auc_score, root_mean_squared_error

from mmsa_dist.evaluate.moleculenet import Metric, Task


@dataclass(frozen=True)
class Judgement:
    """A metric, meaned over the labels that can be judged."""

    value: float
    """NaN where no label can be."""
    labels_scored: int


def score_labels(labels: NDArray[np.float64], predictions: NDArray[np.float64], metric: Metric) -> Judgement:
    """Judges predictions label by label and means over labels, as MoleculeNet does.

    Args:
        labels: (n, T); NaN where missing.
        predictions: (n, T).
        metric: ``roc_auc`` (labels of which only one class is present are left out), ``rmse`` or ``mae``.
    """
    values = []
    for truth, prediction in zip(labels.T, predictions.T, strict=True):
        known = ~np.isnan(truth)
        if not known.any() or (metric == "roc_auc" and not both_classes(truth)):
            continue
        values.append(_METRICS[metric](truth[known], prediction[known]))
    return Judgement(float(np.mean(values)) if values else math.nan, len(values))


def both_classes(y: NDArray[np.float64]) -> bool:
    """Whether the known ones of (n,) labels are of two classes."""
    return len(np.unique(y[~np.isnan(y)])) > 1


def better(value: float, than: float, task: Task) -> bool:
    """Whether `value` beats `than`; NaN beats nothing and is beaten by any number."""
    if math.isnan(than) or math.isnan(value):
        return math.isnan(than) and not math.isnan(value)
    return value > than if task.higher_is_better else value < than


_METRICS = {"roc_auc": roc_auc_score, "rmse": root_mean_squared_error, "mae": mean_absolute_error}
