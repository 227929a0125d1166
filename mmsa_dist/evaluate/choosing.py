"""Hyperparameters of simple models, chosen per label on folds of the training molecules. n molecules, T labels.

Labels that are known for the same training molecules are fitted together, so that whatever depends on the molecules
alone, such as kernel features, is computed once for all of them.

Everything runs on one thread: the last bits of a matrix product depend on the number of threads, and on busy cores
the threads of NumPy's BLAS wait for each other and take many times as long as one.
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
from mmsa_dist.evaluate.methods import Outcome, Progress
from mmsa_dist.evaluate.metrics import can_be_learned, learnable_labels, score_labels
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

Fit = Callable[[Sequence[NDArray[np.float64]], NDArray[np.int64]], Sequence[NDArray[np.float64] | None]]
"""(labels y, each (n,); training rows for which all are known) to (n,) predictions per label, None where impossible."""
Choices = Iterator[tuple[float, NDArray[np.float64]]]
"""Pairs of hyperparameter value and the predictions of its model, the simplest model first."""
Candidates = Callable[[NDArray[np.int64], NDArray[np.int64]], Callable[[NDArray[np.float64]], Choices]]
"""(rows to learn from, rows to predict) to a function from labels y (n,) to all candidate models."""


def label_by_label(fit: Fit, data: TaskData, split: Split, progress: Progress) -> Outcome:
    """Fits each label separately and returns predictions for all; the mean where nothing can be learned."""
    predictions = np.empty(data.labels.shape)
    labels_by_rows: dict[bytes, list[int]] = defaultdict(list)
    for label, y in enumerate(data.labels.T):
        train = _known(y, split)
        predictions[:, label] = y[train].mean() if len(train) else 0.0
        if can_be_learned(y[train], data.task):
            labels_by_rows[train.tobytes()].append(label)
    with threadpool_limits(1):
        done, of_all = 0, sum(map(len, labels_by_rows.values()))
        for labels in labels_by_rows.values():
            if of_all > 1:
                progress(f"label {done + 1} of {of_all}")
            done += len(labels)
            ys = [data.labels[:, label] for label in labels]
            for label, prediction in zip(labels, fit(ys, _known(ys[0], split)), strict=True):
                if prediction is not None:
                    predictions[:, label] = prediction
    learnable = learnable_labels(data.labels[split.train], data.task)
    valid = score_labels(data.labels[split.valid], predictions[split.valid], data.task.metric, learnable)
    return Outcome(predictions, valid.value)


def _known(y: NDArray[np.float64], split: Split) -> NDArray[np.int64]:
    """Returns the training rows for which the label is known."""
    return split.train[~np.isnan(y[split.train])]


def chosen(candidates: Candidates, data: TaskData, split: Split) -> Fit:
    """Returns a fit that picks the simplest candidate within one standard error of the best on training folds.

    This is the rule of Breiman, Friedman, Olshen and Stone (Classification and Regression Trees, 1984, 3.4.3). Each
    fold is scored with models fitted on the others.
    """
    fold_of = np.full(len(data), -1)
    fold_of[split.train] = folds_of(split, data)
    sign = 1.0 if data.task.higher_is_better else -1.0

    def fit(ys: Sequence[NDArray[np.float64]], train: NDArray[np.int64]) -> list[NDArray[np.float64] | None]:
        values: list[dict[float, list[float]]] = [{} for _ in ys]
        for fold in np.unique(fold_of[train]):
            learned, held_out = train[fold_of[train] != fold], train[fold_of[train] == fold]
            able = [
                (y, of_label) for y, of_label in zip(ys, values, strict=True) if can_be_learned(y[learned], data.task)
            ]
            if not able:
                continue
            choices = candidates(learned, held_out)
            for y, of_label in able:
                for choice, prediction in choices(y):
                    value = score_labels(y[held_out, None], prediction[:, None], data.task.metric).value
                    if not math.isnan(value):  # NaN: the fold has one class only
                        of_label.setdefault(choice, []).append(sign * value)
        final = candidates(train, np.arange(len(data)))
        return [_simplest(of_label, final(y)) for of_label, y in zip(values, ys, strict=True)]

    return fit


def _simplest(values: dict[float, list[float]], final: Choices) -> NDArray[np.float64] | None:
    """Returns the prediction of the choice that the rule picks from its `values` on the folds; larger is better."""
    if not values:
        return next((prediction for _, prediction in final), None)
    # Only choices that every fold could score are eligible; a fold may have fewer molecules than neighbours.
    folds = max(map(len, values.values()))
    values = {choice: of_folds for choice, of_folds in values.items() if len(of_folds) == folds}
    best = max(values.values(), key=fmean)
    enough = fmean(best) - (stdev(best) / math.sqrt(folds) if folds > 1 else 0.0)
    return next(prediction for choice, prediction in final if fmean(values.get(choice, [-math.inf])) >= enough)
