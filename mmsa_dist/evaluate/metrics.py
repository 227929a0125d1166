"""Scoring of predictions with scikit-learn's metrics, for labels with missing values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, roc_auc_score, root_mean_squared_error

from mmsa_dist.evaluate.moleculenet import MetricName, Task


@dataclass(frozen=True)
class Judgement:
    """A metric averaged over the labels that can be scored."""

    value: float
    """NaN if no label can be scored."""
    per_label: tuple[float, ...]
    """T values; NaN for labels that cannot be scored."""

    @property
    def labels_scored(self) -> int:
        """Number of labels in the mean."""
        return sum(not math.isnan(value) for value in self.per_label)


def score_labels(
    labels: NDArray[np.float64],
    predictions: NDArray[np.float64],
    metric: MetricName,
    learnable: NDArray[np.bool_] | None = None,
) -> Judgement:
    """Scores predictions per label and averages over labels, as MoleculeNet does.

    Args:
        labels: (n, T); NaN where missing.
        predictions: (n, T).
        metric: ``roc_auc`` (labels with one class only are left out), ``rmse`` or ``mae``.
        learnable: (T,) mask of the labels to score; None = all.
    """
    values = []
    for number, (truth, prediction) in enumerate(zip(labels.T, predictions.T, strict=True)):
        known = ~np.isnan(truth)
        wanted = learnable is None or learnable[number]
        can_be = wanted and known.any() and (metric != "roc_auc" or both_classes(truth))
        values.append(float(_METRICS[metric](truth[known], prediction[known])) if can_be else math.nan)
    defined = [value for value in values if not math.isnan(value)]
    return Judgement(float(np.mean(defined)) if defined else math.nan, tuple(values))


def learnable_labels(labels: NDArray[np.float64], task: Task) -> NDArray[np.bool_]:
    """Returns a (T,) mask of the (n, T) training labels from which something can be learned.

    Only these are scored, in validation and in test. A classification label needs both classes.
    """
    return np.array([can_be_learned(y, task) for y in labels.T], dtype=bool)


def can_be_learned(y: NDArray[np.float64], task: Task) -> bool:
    """Returns whether something can be learned from (n,) labels."""
    return both_classes(y) if task.kind == "classification" else not bool(np.isnan(y).all())


def both_classes(y: NDArray[np.float64]) -> bool:
    """Returns whether the known ones of (n,) labels have two classes."""
    return len(np.unique(y[~np.isnan(y)])) > 1


def better(value: float, than: float, task: Task) -> bool:
    """Returns whether `value` beats `than`; NaN beats nothing and is beaten by any number."""
    if math.isnan(than) or math.isnan(value):
        return math.isnan(than) and not math.isnan(value)
    return value > than if task.higher_is_better else value < than


_METRICS = {"roc_auc": roc_auc_score, "rmse": root_mean_squared_error, "mae": mean_absolute_error}
