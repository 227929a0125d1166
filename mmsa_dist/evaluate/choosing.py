"""What is free in a simple model, chosen label by label on folds of the training molecules. n molecules, T labels.

Labels that are known for the same training molecules are fitted together: what is computed of the molecules alone, such
as the features of a kernel, is then computed once for all of them.

All of it is computed by one thread: the last bits of a product of matrices depend on how many there are, and threads of
the libraries below NumPy that wait for each other on busy cores take many times as long as one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mmsa_dist.evaluate.folds import folds_of
from mmsa_dist.evaluate.methods import Outcome
from mmsa_dist.evaluate.metrics import can_be_learned, learnable_labels, score_labels
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

Fit = Callable[[Sequence[NDArray[np.float64]], NDArray[np.int64]], Sequence[NDArray[np.float64] | None]]
"""(labels y (n,), training rows of which all of them are known) to (n,) predictions of each; None where there can be
none."""
Choices = Iterator[tuple[float, NDArray[np.float64]]]
"""What can be chosen, the simplest model first, and what the model that it gives predicts."""
Candidates = Callable[[NDArray[np.int64], NDArray[np.int64]], Callable[[NDArray[np.float64]], Choices]]
"""(rows to learn from, rows to predict) to what gives, of labels y (n,), all models among which is chosen."""


def label_by_label(fit: Fit, data: TaskData, split: Split) -> Outcome:
    """Each label for itself; the mean where nothing can be learned of it."""
    predictions = np.empty(data.labels.shape)
    known_alike: dict[bytes, list[int]] = defaultdict(list)
    for label, y in enumerate(data.labels.T):
        train = _known(y, split)
        predictions[:, label] = y[train].mean() if len(train) else 0.0
        if can_be_learned(y[train], data.task):
            known_alike[train.tobytes()].append(label)
    with threadpool_limits(1):
        for labels in known_alike.values():
            ys = [data.labels[:, label] for label in labels]
            for label, prediction in zip(labels, fit(ys, _known(ys[0], split)), strict=True):
                if prediction is not None:
                    predictions[:, label] = prediction
    learnable = learnable_labels(data.labels[split.train], data.task)
    valid = score_labels(data.labels[split.valid], predictions[split.valid], data.task.metric, learnable)
    return Outcome(predictions, valid.value)


def _known(y: NDArray[np.float64], split: Split) -> NDArray[np.int64]:
    """The training rows of which a label is known."""
    return split.train[~np.isnan(y[split.train])]


def chosen(candidates: Candidates, data: TaskData, split: Split) -> Fit:
    """The simplest of the candidates that is within a standard error of the best on folds of the training molecules.

    That is the rule of Breiman, Friedman, Olshen and Stone (Classification and Regression Trees, 1984, 3.4.3). Each
    fold is judged by what was learned of the others.
    """
    fold_of = np.full(len(data), -1)
    fold_of[split.train] = folds_of(split, data)
    sign = 1.0 if data.task.higher_is_better else -1.0

    def fit(ys: Sequence[NDArray[np.float64]], train: NDArray[np.int64]) -> list[NDArray[np.float64] | None]:
        values: list[dict[float, list[float]]] = [{} for _ in ys]
        for fold in np.unique(fold_of[train]):
            learned, judged = train[fold_of[train] != fold], train[fold_of[train] == fold]
            able = [
                (y, of_label) for y, of_label in zip(ys, values, strict=True) if can_be_learned(y[learned], data.task)
            ]
            if not able:
                continue
            choices = candidates(learned, judged)
            for y, of_label in able:
                for choice, prediction in choices(y):
                    value = score_labels(y[judged, None], prediction[:, None], data.task.metric).value
                    if not math.isnan(value):  # the fold has one class alone
                        of_label.setdefault(choice, []).append(sign * value)
        final = candidates(train, np.arange(len(data)))
        return [_simplest(of_label, final(y)) for of_label, y in zip(values, ys, strict=True)]

    return fit


def _simplest(values: dict[float, list[float]], final: Choices) -> NDArray[np.float64] | None:
    """The prediction of what the rule chooses by the `values` of each choice on the folds, larger ones the better."""
    if not values:
        return next((prediction for _, prediction in final), None)
    # What not every fold could judge, such as more neighbours than there are, is not chosen.
    judges = max(map(len, values.values()))
    values = {choice: of_folds for choice, of_folds in values.items() if len(of_folds) == judges}
    best = max(values.values(), key=fmean)
    enough = fmean(best) - (stdev(best) / math.sqrt(judges) if judges > 1 else 0.0)
    return next(prediction for choice, prediction in final if fmean(values.get(choice, [-math.inf])) >= enough)
