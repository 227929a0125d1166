"""Frozen features under simple models: how much of a label is already in a vector.

The same linear model, chosen by the same rule on the same molecules, stands on our vectors and on ECFP4; a random
forest on ECFP4 stands beside both, and so does the constant prediction. n molecules, D features, T labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from mmsa_dist.evaluate.fingerprints import ecfp4
from mmsa_dist.evaluate.metrics import better, score_labels
from mmsa_dist.evaluate.results import Results, Score
from mmsa_dist.evaluate.splits import Split, SplitName, make_split
from mmsa_dist.evaluate.tasks import Kind, TaskData

if TYPE_CHECKING:
    from mmsa_dist.embed.embedder import Embedder

PENALTIES = tuple(float(p) for p in np.logspace(-2, 5, 15))
"""Ridge: the penalty on squared weights of standardized features. Logistic: its inverse is scikit-learn's C."""
TREES = 300

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Method:
    """Features and a model on them."""

    features: str
    model: str
    fit_predict: Callable[[NDArray[np.float32], TaskData, int, Split, int], NDArray[np.float64]]
    """(features, data, label, split, seed) to (n,) predictions for all molecules."""
    seeded: bool
    """Whether the outcome depends on the seed even where the split does not."""


def run_probe(
    embedder: Embedder,
    tasks: Sequence[TaskData],
    *,
    split: SplitName = "hu-scaffold",
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress | None = None,
) -> Results:
    """Probes the vectors of `embedder` beside the baselines.

    A molecule that parses but has no vector (too large, refused by standardization) stays in its part and is given
    the mean vector of the training molecules, so that every row is judged on the same molecules; the results say
    how many there were. A method without randomness of its own is run once per distinct split, not once per seed.

    Args:
        embedder: gives the vectors.
        tasks: what to predict.
        split: name of the split.
        seeds: of the random split and of the forests.
        progress: told in a few words what is being done.

    Raises:
        ValueError: no seed, an unknown split, or a task too small to split.
    """
    if not seeds:
        raise ValueError("seeds must hold at least one number")
    say = progress or (lambda words: None)
    scores: list[Score] = []
    splits: list[tuple[Split, TaskData]] = []
    without: dict[str, int] = {}
    for data in tasks:
        say(f"{data.task.name}: vectors of {len(data):,} molecules")
        embedded = embedder.embed(data.smiles)
        without[data.task.name] = len(embedded.invalid)
        features = {f"MMSA ({embedder.view_})": embedded.vectors, "ECFP4": ecfp4(data.smiles).astype(np.float32)}
        by_digest: dict[str, Split] = {}
        for seed in seeds:
            made = make_split(data, split, seed)
            fresh = made.digest not in by_digest
            by_digest.setdefault(made.digest, made)
            for method in METHODS:
                if not fresh and not method.seeded:
                    continue
                name = f"MMSA ({embedder.view_})" if method.features == "embedding" else method.features
                say(f"{data.task.name}, seed {seed}: {method.model} on {name}")
                matrix = features.get(name, features["ECFP4"])
                scores.append(_score(method, name, matrix, data, made, seed))
        splits += [(made, data) for made in by_digest.values()]
    return Results(tuple(scores), tuple(splits), without, embedder.digest)


def _score(method: Method, name: str, matrix: NDArray[np.float32], data: TaskData, split: Split, seed: int) -> Score:
    predictions = np.stack(
        [method.fit_predict(matrix, data, t, split, seed) for t in range(data.labels.shape[1])], axis=1
    )
    judged = score_labels(data.labels[split.test], predictions[split.test], data.task.metric)
    return Score(
        task=data.task.name,
        split=split.name,
        split_digest=split.digest,
        seed=seed,
        features=name,
        model=method.model,
        metric=data.task.metric,
        value=judged.value,
        labels_scored=judged.labels_scored,
        labels=data.labels.shape[1],
        test_molecules=len(split.test),
    )


def _linear(features: NDArray[np.float32], data: TaskData, label: int, split: Split, seed: int) -> NDArray[np.float64]:
    """Ridge or logistic regression on standardized features, its penalty chosen on the validation molecules."""
    y = data.labels[:, label]
    train, valid = (rows[~np.isnan(y[rows])] for rows in (split.train, split.valid))
    if not _learnable(y[train], data.task.kind):
        return _constant(features, data, label, split, seed)
    scaled = StandardScaler().fit(features[train].astype(np.float64)).transform(features.astype(np.float64))
    x = np.nan_to_num(scaled, nan=0.0)  # 0 is the mean of the training molecules
    best: tuple[float, NDArray[np.float64]] | None = None
    for prediction in _linear_path(x, y, train, data.task.kind):
        value = score_labels(y[valid, None], prediction[valid, None], data.task.metric).value
        if best is None or better(value, best[0], data.task):
            best = value, prediction
    assert best is not None
    return best[1]


def _linear_path(
    x: NDArray[np.float64], y: NDArray[np.float64], train: NDArray[np.int64], kind: Kind
) -> Iterator[NDArray[np.float64]]:
    """Predictions for all molecules at each penalty, the strongest first: a tie keeps the simpler model."""
    for penalty in reversed(PENALTIES):
        if kind == "regression":
            yield Ridge(alpha=penalty).fit(x[train], y[train]).predict(x)
        else:
            model = LogisticRegression(C=1 / penalty, max_iter=1000)
            yield model.fit(x[train], y[train]).predict_proba(x)[:, 1]


def _forest(features: NDArray[np.float32], data: TaskData, label: int, split: Split, seed: int) -> NDArray[np.float64]:
    y = data.labels[:, label]
    train = split.train[~np.isnan(y[split.train])]
    if not _learnable(y[train], data.task.kind):
        return _constant(features, data, label, split, seed)
    options: dict[str, Any] = {"n_estimators": TREES, "random_state": seed, "n_jobs": -1}
    forest = (RandomForestRegressor if data.task.kind == "regression" else RandomForestClassifier)(**options)
    # Trees grow side by side, but are asked one after the other: threads would add their answers in any order.
    forest.fit(features[train], y[train]).set_params(n_jobs=1)
    return forest.predict(features) if data.task.kind == "regression" else forest.predict_proba(features)[:, 1]


def _constant(
    features: NDArray[np.float32], data: TaskData, label: int, split: Split, seed: int
) -> NDArray[np.float64]:
    """The mean of the training labels: the mean for a regression, the base rate for a classification."""
    y = data.labels[split.train, label]
    known = y[~np.isnan(y)]
    return np.full(len(data), known.mean() if len(known) else 0.0)


def _learnable(y: NDArray[np.float64], kind: Kind) -> bool:
    return len(y) > 0 and (kind == "regression" or len(np.unique(y)) == 2)


METHODS: tuple[Method, ...] = (
    Method("embedding", "linear", _linear, seeded=False),
    Method("ECFP4", "linear", _linear, seeded=False),
    Method("ECFP4", "random forest", _forest, seeded=True),
    Method("none", "constant", _constant, seeded=False),
)
