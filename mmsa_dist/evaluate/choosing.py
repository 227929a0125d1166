"""What is free in a simple model, chosen label by label on folds of the training molecules. n molecules, T labels.

All of it is computed by one thread: the last bits of a product of matrices depend on how many there are, and threads of
the libraries below NumPy that wait for each other on busy cores take many times as long as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mmsa_dist.evaluate.folds import folds_of
from mmsa_dist.evaluate.methods import Outcome
from mmsa_dist.evaluate.metrics import can_be_learned, learnable_labels, score_labels
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

Fit = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64] | None]
"""(labels y (n,), training rows of which the label is known) to (n,) predictions; None where there can be none."""
Choices = Iterator[tuple[float, NDArray[np.float64]]]
"""What can be chosen, the simplest model first, and what the model that it gives predicts."""
Candidates = Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]], Choices]
"""(labels y (n,), rows to learn from, rows to predict) to all models among which is chosen."""


def label_by_label(fit: Fit, data: TaskData, split: Split) -> Outcome:
    """Each label for itself; the mean where nothing can be learned of it."""
    predictions = np.empty(data.labels.shape)
    with threadpool_limits(1):
        for label, y in enumerate(data.labels.T):
            train = split.train[~np.isnan(y[split.train])]
            prediction = fit(y, train) if can_be_learned(y[train], data.task) else None
            mean = y[train].mean() if len(train) else 0.0
            predictions[:, label] = mean if prediction is None else prediction
    learnable = learnable_labels(data.labels[split.train], data.task)
    valid = score_labels(data.labels[split.valid], predictions[split.valid], data.task.metric, learnable)
    return Outcome(predictions, valid.value)


def chosen(candidates: Candidates, data: TaskData, split: Split) -> Fit:
    """The simplest of the candidates that is within a standard error of the best on folds of the training molecules.

    That is the rule of Breiman, Friedman, Olshen and Stone (Classification and Regression Trees, 1984, 3.4.3). Each
    fold is judged by what was learned of the others.
    """
    fold_of = np.full(len(data), -1)
    fold_of[split.train] = folds_of(split, data)
    sign = 1.0 if data.task.higher_is_better else -1.0

    def fit(y: NDArray[np.float64], train: NDArray[np.int64]) -> NDArray[np.float64] | None:
        values: dict[float, list[float]] = {}
        for fold in np.unique(fold_of[train]):
            learned, judged = train[fold_of[train] != fold], train[fold_of[train] == fold]
            if can_be_learned(y[learned], data.task):
                for choice, prediction in candidates(y, learned, judged):
                    value = score_labels(y[judged, None], prediction[:, None], data.task.metric).value
                    if not math.isnan(value):  # the fold has one class alone
                        values.setdefault(choice, []).append(sign * value)
        final = candidates(y, train, np.arange(len(y)))
        if not values:
            return next((prediction for _, prediction in final), None)
        # What not every fold could judge, such as more neighbours than there are, is not chosen.
        judges = max(map(len, values.values()))
        values = {choice: of_folds for choice, of_folds in values.items() if len(of_folds) == judges}
        best = max(values.values(), key=fmean)
        enough = fmean(best) - (stdev(best) / math.sqrt(judges) if judges > 1 else 0.0)
        return next(prediction for choice, prediction in final if fmean(values.get(choice, [-math.inf])) >= enough)

    return fit
