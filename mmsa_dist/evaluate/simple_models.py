"""Simple models on fixed vectors, whatever is free in them chosen on the validation molecules.

n molecules, D features, T labels. A molecule without a vector (NaN) is given the mean vector of the training
molecules, or the mean label where a model looks for neighbours, so that all methods are judged on the same molecules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from mmsa_dist.evaluate.methods import Outcome, Progress
from mmsa_dist.evaluate.metrics import better, both_classes, score_labels
from mmsa_dist.evaluate.moleculenet import Kind
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

PENALTIES = tuple(float(p) for p in np.logspace(-2, 5, 15))
"""Ridge: the penalty on squared weights of standardized features. Logistic: its inverse is scikit-learn's C."""
NEIGHBOURS = (1, 2, 4, 8, 16, 32)
TREES = 300

_Label = Callable[[NDArray[np.float64], NDArray[np.int64]], Iterator[NDArray[np.float64]]]
"""(labels y (n,), training rows of which the label is known) to (n,) predictions, one for every choice."""


def linear(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Ridge or logistic regression on standardized features, its penalty chosen on the validation molecules."""

    def path(y: NDArray[np.float64], train: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
        if np.isnan(x[train]).all():
            return
        scaled = StandardScaler().fit(x[train].astype(np.float64)).transform(x.astype(np.float64))
        yield from _linear_path(np.nan_to_num(scaled, nan=0.0), y, train, data.task.kind)

    return _label_by_label(path, data, split)


def _linear_path(
    x: NDArray[np.float64], y: NDArray[np.float64], train: NDArray[np.int64], kind: Kind
) -> Iterator[NDArray[np.float64]]:
    """The strongest penalty first: a tie keeps the simpler model, and the next logistic model begins at the last."""
    logistic = LogisticRegression(max_iter=1000, warm_start=True)
    for penalty in reversed(PENALTIES):
        if kind == "regression":
            yield Ridge(alpha=penalty).fit(x[train], y[train]).predict(x)
        else:
            logistic.set_params(C=1 / penalty)
            yield logistic.fit(x[train], y[train]).predict_proba(x)[:, 1]


def nearest(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Mean label of the nearest training molecules by cosine, their number chosen on the validation molecules."""
    x = x.astype(np.float32)
    blind = np.isnan(x).any(axis=1)

    def path(y: NDArray[np.float64], train: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
        train = train[~blind[train]]
        if not len(train):
            return
        most = min(max(NEIGHBOURS), len(train))
        index = NearestNeighbors(n_neighbors=most, metric="cosine", algorithm="brute").fit(x[train])
        found = index.kneighbors(x[~blind], return_distance=False)
        for k in sorted((k for k in NEIGHBOURS if k <= most), reverse=True):
            prediction = np.full(len(y), y[train].mean())
            prediction[~blind] = y[train][found[:, :k]].mean(axis=1)
            yield prediction

    return _label_by_label(path, data, split)


def forest(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """A random forest of `TREES` trees with scikit-learn's defaults; nothing is chosen."""

    def path(y: NDArray[np.float64], train: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
        options: dict[str, Any] = {"n_estimators": TREES, "random_state": seed}
        grown = (RandomForestRegressor if data.task.kind == "regression" else RandomForestClassifier)(**options)
        grown.fit(x[train], y[train])
        yield grown.predict(x) if data.task.kind == "regression" else grown.predict_proba(x)[:, 1]

    return _label_by_label(path, data, split)


def constant(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """The mean of the training labels: the mean for a regression, the base rate for a classification."""
    return _label_by_label(lambda y, train: iter(()), data, split)


def _label_by_label(choices: _Label, data: TaskData, split: Split) -> Outcome:
    """Each label for itself: the choice that does best on the validation molecules, or the mean where none can be."""
    predictions = np.empty(data.labels.shape)
    for label, y in enumerate(data.labels.T):
        train, valid = (rows[~np.isnan(y[rows])] for rows in (split.train, split.valid))
        best = np.full(len(data), y[train].mean() if len(train) else 0.0)
        if len(train) and (data.task.kind == "regression" or both_classes(y[train])):
            best_value: float | None = None
            for prediction in choices(y, train):
                value = score_labels(y[valid, None], prediction[valid, None], data.task.metric).value
                if best_value is None or better(value, best_value, data.task):
                    best_value, best = value, prediction
        predictions[:, label] = best
    valid_score = score_labels(data.labels[split.valid], predictions[split.valid], data.task.metric)
    return Outcome(predictions, valid_score.value)
