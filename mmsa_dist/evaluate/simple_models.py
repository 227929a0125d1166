"""Simple models on frozen vectors, with hyperparameters chosen on folds of the training molecules.

n molecules, D features, T labels. A molecule without a vector (NaN) gets the mean vector of the training
molecules, or the mean label for nearest neighbours, so that all methods are scored on the same molecules.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from mmsa_dist.evaluate.choosing import Choices, chosen, label_by_label
from mmsa_dist.evaluate.kernels import features_of_kernel, tanimoto_kernel
from mmsa_dist.evaluate.methods import Outcome, Progress
from mmsa_dist.evaluate.moleculenet import Kind
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

PENALTIES = tuple(float(p) for p in np.logspace(-2, 5, 15))
"""Ridge: the penalty on squared weights of standardized features. Logistic: its inverse is scikit-learn's C."""
PENALTIES_OF_KERNELS = tuple(float(p) for p in np.logspace(-3, 1, 9))
"""Likewise, on the squared norm of the function; kernels are 1 on the diagonal."""
NEIGHBOURS = (1, 2, 4, 8, 16, 32)
TREES = 300

_LearnedAndWanted = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Features of the rows to learn from and of those to predict."""


def linear(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Fits ridge or logistic regression on standardized features; the penalty is chosen."""
    return _regression(x.astype(np.float64), _standardized, PENALTIES, data, split, progress)


def rbf(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Fits ridge or logistic regression under exp(-|a - b|²/D) of standardized features; the penalty is chosen."""

    def features(learned: NDArray[Any], wanted: NDArray[Any]) -> _LearnedAndWanted:
        return features_of_kernel(rbf_kernel, *_standardized(learned, wanted))

    return _regression(x.astype(np.float64), features, PENALTIES_OF_KERNELS, data, split, progress)


def tanimoto(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Fits ridge or logistic regression with the Tanimoto kernel of binary features; the penalty is chosen."""
    features = partial(features_of_kernel, tanimoto_kernel)
    return _regression(x.astype(np.float32), features, PENALTIES_OF_KERNELS, data, split, progress)


def _regression(
    x: NDArray[Any],
    features: Callable[[NDArray[Any], NDArray[Any]], _LearnedAndWanted],
    penalties: Sequence[float],
    data: TaskData,
    split: Split,
    progress: Progress,
) -> Outcome:
    """Fits ridge or logistic regression on the `features` of the rows to learn from and of those to predict."""

    def candidates(learned: NDArray[np.int64], wanted: NDArray[np.int64]) -> Callable[[NDArray[np.float64]], Choices]:
        if np.isnan(x[learned]).all():
            return lambda y: iter(())
        of_learned, of_wanted = features(x[learned], x[wanted])
        return lambda y: _regressions(of_learned, of_wanted, y[learned], data.task.kind, penalties)

    return label_by_label(chosen(candidates, data, split), data, split, progress)


def _standardized(learned: NDArray[np.float64], wanted: NDArray[np.float64]) -> _LearnedAndWanted:
    """Standardizes features by the rows to learn from; unknown values become the mean.

    Features to predict are clipped to the range of those to learn from: one that hardly varies there may be a hundred
    thousand of its standard deviations away in another molecule.
    """
    scaler = StandardScaler().fit(learned)
    within = wanted.clip(np.nanmin(learned, axis=0), np.nanmax(learned, axis=0))
    return tuple(np.nan_to_num(scaler.transform(rows), copy=False, nan=0.0) for rows in (learned, within))


def _regressions(
    learned: NDArray[np.float64],
    wanted: NDArray[np.float64],
    y: NDArray[np.float64],
    kind: Kind,
    penalties: Sequence[float],
) -> Choices:
    """Yields models from the strongest penalty on; each logistic model starts from the previous one."""
    logistic = LogisticRegression(max_iter=1000, warm_start=True)
    for penalty in sorted(penalties, reverse=True):
        if kind == "regression":
            yield penalty, Ridge(alpha=penalty).fit(learned, y).predict(wanted)
        else:
            logistic.set_params(C=1 / penalty)
            with warnings.catch_warnings():
                # With a weak penalty it may not converge; the result is scored like any other.
                warnings.simplefilter("ignore", ConvergenceWarning)
                logistic.fit(learned, y)
            yield penalty, logistic.predict_proba(wanted)[:, 1]


def nearest(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Predicts the mean label of the nearest training molecules by cosine; their number is chosen."""
    x = x.astype(np.float32)
    without_vector = np.isnan(x).any(axis=1)

    def candidates(learned: NDArray[np.int64], wanted: NDArray[np.int64]) -> Callable[[NDArray[np.float64]], Choices]:
        known, has_vector = learned[~without_vector[learned]], ~without_vector[wanted]
        if not len(known):
            return lambda y: iter(())
        most = min(max(NEIGHBOURS), len(known))
        index = NearestNeighbors(n_neighbors=most, metric="cosine", algorithm="brute").fit(x[known])
        found = index.kneighbors(x[wanted[has_vector]], return_distance=False) if has_vector.any() else None

        def choices(y: NDArray[np.float64]) -> Choices:
            for k in sorted((k for k in NEIGHBOURS if k <= most), reverse=True):
                prediction = np.full(len(wanted), y[known].mean())
                if found is not None:
                    prediction[has_vector] = y[known][found[:, :k]].mean(axis=1)
                yield k, prediction

        return choices

    return label_by_label(chosen(candidates, data, split), data, split, progress)


def forest(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Fits a random forest of `TREES` trees with scikit-learn's defaults; nothing is chosen."""

    def grow(y: NDArray[np.float64], train: NDArray[np.int64]) -> NDArray[np.float64]:
        options: dict[str, Any] = {"n_estimators": TREES, "random_state": seed}
        grown = (RandomForestRegressor if data.task.kind == "regression" else RandomForestClassifier)(**options)
        grown.fit(x[train], y[train])
        return grown.predict(x) if data.task.kind == "regression" else grown.predict_proba(x)[:, 1]

    return label_by_label(lambda ys, train: [grow(y, train) for y in ys], data, split, progress)


def constant(x: NDArray[Any], data: TaskData, split: Split, seed: int, progress: Progress) -> Outcome:
    """Predicts the mean of the training labels: the mean for a regression, the base rate for a classification."""
    return label_by_label(lambda ys, train: [None] * len(ys), data, split, progress)
