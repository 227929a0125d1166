"""How predictions are judged: scikit-learn's metrics, over labels of which some are missing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, roc_auc_score, root_mean_squared_error

from mmsa_dist.evaluate.moleculenet import MetricName, Task


@dataclass(frozen=True)
class Judgement:
    """A metric, meaned over the labels that can be judged."""

    value: float
    """NaN where no label can be."""
    per_label: tuple[float, ...]
    """T values; NaN where a label cannot be judged."""

    @property
    def labels_scored(self) -> int:
        """How many labels enter the mean."""
        return sum(not math.isnan(value) for value in self.per_label)


def score_labels(
    labels: NDArray[np.float64],
    predictions: NDArray[np.float64],
    metric: MetricName,
    learnable: NDArray[np.bool_] | None = None,
) -> Judgement:
    """Judges predictions label by label and means over labels, as MoleculeNet does.

    Args:
        labels: (n, T); NaN where missing.
        predictions: (n, T).
        metric: ``roc_auc`` (labels of which only one class is present are left out), ``rmse`` or ``mae``.
        learnable: (T,) the labels that are judged at all; None = all.
    """
    values = []
    for number, (truth, prediction) in enumerate(zip(labels.T, predictions.T, strict=True)):
        known = ~np.isnan(truth)
        wanted = learnable is None or learnable[number]
        can_be = wanted and known.any() and (metric != "roc_auc" or both_classes(truth))
        values.append(float(_METRICS[metric](truth[known], prediction[known])) if can_be else math.nan)
    judged = [value for value in values if not math.isnan(value)]
    return Judgement(float(np.mean(judged)) if judged else math.nan, tuple(values))


def learnable_labels(labels: NDArray[np.float64], task: Task) -> NDArray[np.bool_]:
    """(T,) of which of the (n, T) labels of the training molecules something can be learned.

    Those alone are judged, on the validation molecules as on the test molecules: of a class both must be there.
    """
    return np.array([can_be_learned(y, task) for y in labels.T], dtype=bool)


def can_be_learned(y: NDArray[np.float64], task: Task) -> bool:
    """Whether something can be learned of (n,) labels."""
    return both_classes(y) if task.kind == "classification" else not bool(np.isnan(y).all())


def both_classes(y: NDArray[np.float64]) -> bool:
    """Whether the known ones of (n,) labels are of two classes."""
    return len(np.unique(y[~np.isnan(y)])) > 1


def better(value: float, than: float, task: Task) -> bool:
    """Whether `value` beats `than`; NaN beats nothing and is beaten by any number."""
    if math.isnan(than) or math.isnan(value):
        return math.isnan(than) and not math.isnan(value)
    return value > than if task.higher_is_better else value < than


_METRICS = {"roc_auc": roc_auc_score, "rmse": root_mean_squared_error, "mae": mean_absolute_error}
