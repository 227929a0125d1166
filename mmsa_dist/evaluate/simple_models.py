"""Simple models on fixed vectors, whatever is free in them chosen on folds of the training molecules.

n molecules, D features, T labels. A molecule without a vector (NaN) is given the mean vector of the training
molecules, or the mean label where a model looks for neighbours, so that all methods are judged on the same molecules.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from mmsa_dist.evaluate.folds import folds_of
from mmsa_dist.evaluate.methods import Outcome, Progress
from mmsa_dist.evaluate.metrics import both_classes, score_labels
from mmsa_dist.evaluate.moleculenet import Kind, Task
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

PENALTIES = tuple(float(p) for p in np.logspace(-2, 5, 15))
"""Ridge: the penalty on squared weights of standardized features. Logistic: its inverse is scikit-learn's C."""
NEIGHBOURS = (1, 2, 4, 8, 16, 32)
TREES = 300

_Fit = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64] | None]
"""(labels y (n,), training rows of which the label is known) to (n,) predictions; None where there can be none."""
_Choices = Iterator[tuple[float, NDArray[np.float64]]]
"""What can be chosen, the simplest model first, and what the model that it gives predicts."""
_Path = Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]], _Choices]
"""(labels y (n,), rows to learn from, rows to predict) to all models among which is chosen."""


def linear(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Ridge or logistic regression on standardized features, its penalty chosen.

    A feature counts as no farther out than in any training molecule: one that hardly varies among them may be a
    hundred thousand of its standard deviations away in another.
    """
    x = x.astype(np.float64)

    def path(y: NDArray[np.float64], learned: NDArray[np.int64], wanted: NDArray[np.int64]) -> _Choices:
        seen = x[learned]
        if np.isnan(seen).all():
            return
        scaler = StandardScaler().fit(seen)
        within = x[wanted].clip(np.nanmin(seen, axis=0), np.nanmax(seen, axis=0))
        seen, within = (np.nan_to_num(scaler.transform(rows), copy=False, nan=0.0) for rows in (seen, within))
        yield from _linear_path(seen, within, y[learned], data.task.kind)

    return _label_by_label(_chosen(path, data, split), data, split)


def _linear_path(
    learned: NDArray[np.float64], wanted: NDArray[np.float64], y: NDArray[np.float64], kind: Kind
) -> _Choices:
    """The strongest penalty first, and the next logistic model begins at the last."""
    logistic = LogisticRegression(max_iter=1000, warm_start=True)
    for penalty in reversed(PENALTIES):
        if kind == "regression":
            yield penalty, Ridge(alpha=penalty).fit(learned, y).predict(wanted)
        else:
            logistic.set_params(C=1 / penalty)
            with warnings.catch_warnings():
                # With hardly a penalty there is no end to the way; how far it came is judged like all else.
                warnings.simplefilter("ignore", ConvergenceWarning)
                logistic.fit(learned, y)
            yield penalty, logistic.predict_proba(wanted)[:, 1]


def nearest(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Mean label of the nearest training molecules by cosine, their number chosen."""
    x = x.astype(np.float32)
    blind = np.isnan(x).any(axis=1)

    def path(y: NDArray[np.float64], learned: NDArray[np.int64], wanted: NDArray[np.int64]) -> _Choices:
        seen, sighted = learned[~blind[learned]], ~blind[wanted]
        if not len(seen):
            return
        most = min(max(NEIGHBOURS), len(seen))
        index = NearestNeighbors(n_neighbors=most, metric="cosine", algorithm="brute").fit(x[seen])
        found = index.kneighbors(x[wanted[sighted]], return_distance=False) if sighted.any() else None
        for k in sorted((k for k in NEIGHBOURS if k <= most), reverse=True):
            prediction = np.full(len(wanted), y[seen].mean())
            if found is not None:
                prediction[sighted] = y[seen][found[:, :k]].mean(axis=1)
            yield k, prediction

    return _label_by_label(_chosen(path, data, split), data, split)


def forest(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """A random forest of `TREES` trees with scikit-learn's defaults; nothing is chosen."""

    def fit(y: NDArray[np.float64], train: NDArray[np.int64]) -> NDArray[np.float64]:
        options: dict[str, Any] = {"n_estimators": TREES, "random_state": seed}
        grown = (RandomForestRegressor if data.task.kind == "regression" else RandomForestClassifier)(**options)
        grown.fit(x[train], y[train])
        return grown.predict(x) if data.task.kind == "regression" else grown.predict_proba(x)[:, 1]

    return _label_by_label(fit, data, split)


def constant(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """The mean of the training labels: the mean for a regression, the base rate for a classification."""
    return _label_by_label(lambda y, train: None, data, split)


def _label_by_label(fit: _Fit, data: TaskData, split: Split) -> Outcome:
    """Each label for itself; the mean where nothing can be learned of it."""
    predictions = np.empty(data.labels.shape)
    for label, y in enumerate(data.labels.T):
        train = split.train[~np.isnan(y[split.train])]
        prediction = fit(y, train) if _can_be_learned(y[train], data.task) else None
        mean = y[train].mean() if len(train) else 0.0
        predictions[:, label] = mean if prediction is None else prediction
    valid = score_labels(data.labels[split.valid], predictions[split.valid], data.task.metric)
    return Outcome(predictions, valid.value)


def _chosen(path: _Path, data: TaskData, split: Split) -> _Fit:
    """The simplest model of the path that is within a standard error of the best on folds of the training molecules.

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
            if _can_be_learned(y[learned], data.task):
                for choice, prediction in path(y, learned, judged):
                    value = score_labels(y[judged, None], prediction[:, None], data.task.metric).value
                    if not math.isnan(value):  # the fold has one class alone
                        values.setdefault(choice, []).append(sign * value)
        final = path(y, train, np.arange(len(y)))
        if not values:
            return next((prediction for _, prediction in final), None)
        # What not every fold could judge, such as more neighbours than there are, is not chosen.
        judges = max(map(len, values.values()))
        values = {choice: of_folds for choice, of_folds in values.items() if len(of_folds) == judges}
        best = max(values.values(), key=fmean)
        enough = fmean(best) - (stdev(best) / math.sqrt(judges) if judges > 1 else 0.0)
        return next(prediction for choice, prediction in final if fmean(values.get(choice, [-math.inf])) >= enough)

    return fit


def _can_be_learned(y: NDArray[np.float64], task: Task) -> bool:
    return len(y) > 0 and (task.kind == "regression" or both_classes(y))
