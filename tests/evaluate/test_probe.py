"""Probes of frozen vectors, the numbers they are judged by, and the files they are published in."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from mmsa_dist.embed.embedder import EmbeddedMolecules, InvalidMolecule
from mmsa_dist.evaluate import Results, Score, load_task, make_split, run_probe
from mmsa_dist.evaluate import probe as probe_module
from mmsa_dist.evaluate.fingerprints import ecfp4
from mmsa_dist.evaluate.metrics import better, score_labels
from mmsa_dist.evaluate.splits import PARTS, Split
from mmsa_dist.evaluate.tasks import Task, TaskData
from tests.fixtures.embedders import DRUGS, random_embedder


class KnowsTheAnswer:
    """Stands for an embedder whose vectors hold the label, except for the molecules that it refuses."""

    digest = "0" * 64
    view_ = "structure"

    def __init__(self, data: TaskData, refused: tuple[int, ...] = ()) -> None:
        self._data, self._refused = data, refused

    def embed(self, smiles):
        noise = np.random.default_rng(0).standard_normal((len(smiles), 3))
        vectors = np.concatenate([self._data.labels, noise], axis=1).astype(np.float32)
        vectors[list(self._refused)] = np.nan
        invalid = tuple(InvalidMolecule(row, smiles[row], "syntax", "no") for row in self._refused)
        return EmbeddedMolecules(vectors, tuple(smiles), tuple(smiles), invalid)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(probe_module, "TREES", 5)


@pytest.fixture(scope="module")
def freesolv() -> TaskData:
    whole = load_task("freesolv")
    return replace(whole, smiles=whole.smiles[:200], labels=whole.labels[:200])


def by_method(results: Results) -> dict[tuple[str, str], float]:
    return {(line.features, line.model): line.mean for line in results.summaries()}


def test_regression_finds_what_is_in_the_vectors(freesolv):
    results = run_probe(KnowsTheAnswer(freesolv), [freesolv], split="random", seeds=(0, 1))
    means = by_method(results)
    assert means["MMSA (structure)", "linear"] < 0.05
    assert means["ECFP4", "linear"] < means["none", "constant"]
    assert [line.features for line in results.summaries() if line.best] == ["MMSA (structure)"]
    split = make_split(freesolv, "random", 0)
    y = freesolv.labels[:, 0]
    constant = next(s for s in results.scores if s.features == "none" and s.seed == 0)
    assert constant.value == pytest.approx(math.sqrt(np.mean((y[split.test] - y[split.train].mean()) ** 2)))


def test_classification_over_labels_of_which_some_are_missing(freesolv):
    y = (freesolv.labels[:, 0] > -3).astype(float)
    holes = np.where(np.arange(200) % 3 == 0, np.nan, y)
    data = replace(
        freesolv,
        task=Task("two", "classification", "roc_auc", ("two",)),
        labels=np.stack([y, holes, np.ones(200)], axis=1),
        label_names=("all", "some", "one class"),
    )
    known = replace(data, labels=np.nan_to_num(data.labels, nan=0.5))
    results = run_probe(KnowsTheAnswer(known), [data], split="random", seeds=(0,))
    means = by_method(results)
    assert means["MMSA (structure)", "linear"] > 0.99
    assert means["none", "constant"] == 0.5
    assert {(score.labels_scored, score.labels) for score in results.scores} == {(2, 3)}


def test_methods_without_randomness_run_once_per_split(freesolv):
    results = run_probe(KnowsTheAnswer(freesolv), [freesolv], split="hu-scaffold", seeds=(0, 1, 2))
    runs = {(line.features, line.model): (len(line.values), line.spread is None) for line in results.summaries()}
    assert runs["ECFP4", "random forest"] == (3, False)
    assert {runs[key] for key in runs if key[1] != "random forest"} == {(1, True)}
    assert len(results.splits) == 1


def test_a_molecule_without_a_vector_stays_and_is_counted(freesolv):
    split = make_split(freesolv, "hu-scaffold")
    refused = (int(split.test[0]), int(split.train[0]))
    results = run_probe(KnowsTheAnswer(freesolv, refused), [freesolv], seeds=(0,))
    assert results.without_vector == {"freesolv": 2}
    linear = next(s for s in results.scores if s.features == "MMSA (structure)")
    assert linear.test_molecules == len(split.test)
    y = freesolv.labels[:, 0]
    lost = y[split.test[0]] - y[split.train].mean()
    assert linear.value == pytest.approx(abs(lost) / math.sqrt(len(split.test)), rel=0.05)


def test_with_a_real_embedder():
    smiles = tuple(DRUGS * 3)
    data = TaskData(Task("mass", "regression", "rmse", ("mass",)), smiles, np.arange(33.0)[:, None], ("y",), ())
    embedder = random_embedder(view="unified")
    first, second = (run_probe(embedder, [data], split="random", seeds=(0,)) for _ in range(2))
    assert first.scores == second.scores
    assert first.model_digest == embedder.digest
    with pytest.raises(ValueError, match="at least one"):
        run_probe(embedder, [data], seeds=())


def test_the_labels_of_the_test_molecules_are_not_seen(freesolv):
    split = make_split(freesolv, "random", 0)
    shuffled = freesolv.labels.copy()
    shuffled[split.test] = shuffled[np.random.default_rng(0).permutation(split.test)]
    assert not np.array_equal(shuffled, freesolv.labels)
    other = replace(freesolv, labels=shuffled)
    bits = ecfp4(freesolv.smiles, bits=256).astype(np.float32)
    for method in probe_module.METHODS:
        np.testing.assert_array_equal(
            method.fit_predict(bits, freesolv, 0, split, 0), method.fit_predict(bits, other, 0, split, 0)
        )


def test_validation_chooses_the_penalty(freesolv):
    split = make_split(freesolv, "random", 0)
    bits = ecfp4(freesolv.smiles, bits=256).astype(np.float64)
    y = freesolv.labels[:, 0]
    x = StandardScaler().fit(bits[split.train]).transform(bits)
    by_penalty = [Ridge(alpha=p).fit(x[split.train], y[split.train]).predict(x) for p in probe_module.PENALTIES]
    errors = [float(np.mean((p[split.valid] - y[split.valid]) ** 2)) for p in by_penalty]
    linear = next(m for m in probe_module.METHODS if (m.features, m.model) == ("ECFP4", "linear"))
    chosen = linear.fit_predict(bits.astype(np.float32), freesolv, 0, split, 0)
    assert 0 < np.argmin(errors) < len(errors) - 1, "the range of penalties reaches past the best"
    np.testing.assert_allclose(chosen, by_penalty[int(np.argmin(errors))])
    # Reversed labels of the validation molecules are predicted best by the strongest penalty.
    against = replace(freesolv, labels=freesolv.labels.copy())
    against.labels[split.valid] = 2 * y[split.train].mean() - against.labels[split.valid]
    turned = linear.fit_predict(bits.astype(np.float32), against, 0, split, 0)
    np.testing.assert_allclose(turned, by_penalty[-1])


def test_a_task_of_one_class_cannot_be_judged(freesolv, tmp_path):
    task = Task("ones", "classification", "roc_auc", ("ones",))
    data = replace(freesolv, task=task, labels=np.ones_like(freesolv.labels))
    results = run_probe(KnowsTheAnswer(data), [data], split="random", seeds=(0,))
    assert all(math.isnan(score.value) and score.labels_scored == 0 for score in results.scores)
    assert not any(line.best for line in results.summaries())
    assert results.write(tmp_path).joinpath("results.md").read_text().count("not defined") == 4


def test_results_are_written_with_their_splits(freesolv, tmp_path):
    results = run_probe(KnowsTheAnswer(freesolv), [freesolv], split="random", seeds=(0, 1))
    results.write(tmp_path)
    about = json.loads((tmp_path / "results.json").read_text())
    again = [Score(**{k: v for k, v in score.items() if k != "split_file"}) for score in about["scores"]]
    assert tuple(again) == results.scores
    assert len(again) == 8
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = [(line["features"], int(line["seed"]), float(line["value"])) for line in csv.DictReader(file)]
    assert lines == [(score.features, score.seed, score.value) for score in results.scores]
    for score in about["scores"]:
        split = json.loads((tmp_path / "splits" / score["split_file"]).read_text())
        parts = Split(split["split"], split["seed"], *(np.array(split[part]) for part in PARTS))
        assert split["digest"] == score["split_digest"] == parts.digest
        assert split["seed"] == score["seed"]
    assert "| freesolv | random | RMSE ↓ | MMSA (structure) | linear | **" in (tmp_path / "results.md").read_text()


def test_undefined_metrics_are_null(tmp_path):
    score = Score("t", "random", "d", 0, "f", "m", "roc_auc", math.nan, 0, 1, 3)
    Results((score,)).write(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["scores"][0]["value"] is None
    assert "not defined" in (tmp_path / "results.md").read_text()


def test_metrics():
    truth = np.array([[0, 1.0], [1, np.nan], [1, 3.0]])
    guess = np.array([[0.1, 1.0], [0.8, 9.0], [0.05, 5.0]])
    assert score_labels(truth[:, :1], guess[:, :1], "roc_auc").value == 0.5
    assert score_labels(truth[:, 1:], guess[:, 1:], "rmse").value == pytest.approx(math.sqrt(2))
    assert score_labels(truth[:, 1:], guess[:, 1:], "mae").value == 1
    assert score_labels(np.ones((3, 1)), guess[:, :1], "roc_auc").labels_scored == 0
    auc = Task("a", "classification", "roc_auc", ("a",))
    assert better(0.7, 0.6, auc)
    assert better(0.1, math.nan, auc)
    assert not better(math.nan, 0.1, auc)
    assert better(0.1, 0.2, Task("b", "regression", "rmse", ("b",)))


def test_labels_of_both_classes_are_meaned():
    random = np.random.default_rng(0)
    truth = (random.random((50, 4)) < 0.3).astype(float)
    truth[random.random((50, 4)) < 0.2] = np.nan
    truth[:, 2] = np.where(np.isnan(truth[:, 2]), np.nan, 0.0)
    guess = random.random((50, 4))
    known = ~np.isnan(truth)
    expected = np.mean([roc_auc_score(truth[known[:, t], t], guess[known[:, t], t]) for t in (0, 1, 3)])
    judged = score_labels(truth, guess, "roc_auc")
    assert (judged.value, judged.labels_scored) == (pytest.approx(expected, abs=1e-12), 3)


def test_fingerprints():
    bits = ecfp4(["CCO", "OCC", "c1ccccc1"])
    assert bits.shape == (3, 2048)
    assert np.array_equal(bits[0], bits[1])
    assert bits[0].sum() == 6  # CH3, CH2, OH; and each with its neighbours, of which both ends differ
    with pytest.raises(ValueError, match="row 1: 'x' does not parse"):
        ecfp4(["C", "x"])
