"""Simple models on fixed vectors: what they find, what chooses, and what they must not see."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from mmsa_dist.evaluate import kernels, make_split
from mmsa_dist.evaluate import simple_models as models
from mmsa_dist.evaluate.fingerprints import ecfp4
from mmsa_dist.evaluate.folds import FOLDS, folds_of
from mmsa_dist.evaluate.kernels import features_of_kernel, tanimoto_kernel
from tests.fixtures.labelled import as_classification, some_of_freesolv, told

MODELS = (models.linear, models.rbf, models.nearest, models.forest, models.constant)
OF_BITS = (*MODELS, models.tanimoto)


@pytest.fixture(scope="module")
def freesolv():
    return some_of_freesolv()


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(models, "TREES", 5)


def quiet(words: str) -> None:
    pass


def rmse(a, b) -> float:
    return math.sqrt(np.mean((a - b) ** 2))


def test_what_is_in_the_vectors_is_found(freesolv):
    split, x = make_split(freesolv, "random", 0), told(freesolv).value
    y = freesolv.labels[:, 0]
    errors = {
        model.__name__: rmse(model(x, freesolv, split, 0, quiet).predictions[split.test, 0], y[split.test])
        for model in MODELS
    }
    assert errors["linear"] < 0.1  # of labels from -25 to 3; the penalty is a little stronger than the best
    assert max(errors["rbf"], errors["nearest"], errors["forest"]) < errors["constant"]
    assert errors["constant"] == pytest.approx(rmse(y[split.train].mean(), y[split.test]))


def test_labels_of_which_some_are_missing(freesolv):
    data = as_classification(freesolv)
    split, x = make_split(data, "random", 0), told(data).value
    for model in MODELS:
        outcome = model(x, data, split, 0, quiet)
        assert outcome.predictions.shape == (200, 3)
        assert np.isfinite(outcome.predictions).all()
        assert (outcome.predictions[:, 2] == 1).all(), "a label of one class is predicted as such"
        assert outcome.valid > 0.95 or model is models.constant
    known = split.train[~np.isnan(data.labels[split.train, 1])]
    base = models.constant(x, data, split, 0, quiet).predictions
    assert base[:, 1] == pytest.approx(data.labels[known, 1].mean())


def test_nearest_neighbours_by_hand():
    data = replace(some_of_freesolv(10), labels=np.arange(10.0)[:, None])
    angle = np.deg2rad([0, 10, 30, 70, 5, 0, 90, 0, 0, 0])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    x[6] = np.nan
    split = replace(make_split(data, "random", 0), train=np.arange(4), valid=np.array([4]), test=np.array([5, 6]))
    # Four molecules are a fold each. The nearest other is off by 1 each time; the mean of two by 1.5, 0, 1.5, 1.5.
    prediction = models.nearest(x, data, split, 0, quiet).predictions[:, 0]
    assert prediction[5] == 0
    assert prediction[6] == 1.5, "a molecule without a vector is given the mean of the training labels"


def test_a_molecule_without_a_vector_is_given_the_mean_one(freesolv):
    split = make_split(freesolv, "random", 0)
    x = told(freesolv, blind=(int(split.test[0]), int(split.train[0]))).value
    prediction = models.linear(x, freesolv, split, 0, quiet).predictions[:, 0]
    assert prediction[split.test[0]] == pytest.approx(freesolv.labels[split.train, 0].mean(), abs=0.2)


def test_vectors_that_are_all_missing_give_the_mean(freesolv):
    split = make_split(freesolv, "random", 0)
    x = np.full((200, 3), np.nan, np.float32)
    for model in (models.linear, models.rbf, models.nearest):
        prediction = model(x, freesolv, split, 0, quiet).predictions[:, 0]
        assert prediction == pytest.approx(freesolv.labels[split.train, 0].mean())


@pytest.mark.parametrize("model", [models.linear, models.rbf, models.tanimoto])
def test_the_same_bits_however_many_threads_there_are(freesolv, model):
    split = make_split(freesolv, "random", 0)
    bits = ecfp4(freesolv.smiles, bits=256)
    outcomes = []
    for threads in (1, 2):  # as OMP_NUM_THREADS has it
        with threadpool_limits(threads):
            outcomes.append(model(bits, freesolv, split, 0, quiet))
    np.testing.assert_array_equal(outcomes[0].predictions, outcomes[1].predictions)


@pytest.mark.parametrize("model", OF_BITS)
def test_the_labels_of_the_test_molecules_are_not_seen(freesolv, model):
    split = make_split(freesolv, "random", 0)
    shuffled = freesolv.labels.copy()
    shuffled[split.test] = shuffled[np.random.default_rng(0).permutation(split.test)]
    assert not np.array_equal(shuffled, freesolv.labels)
    bits = ecfp4(freesolv.smiles, bits=256)
    outcomes = [model(bits, replace(freesolv, labels=y), split, 0, quiet) for y in (freesolv.labels, shuffled)]
    np.testing.assert_array_equal(outcomes[0].predictions, outcomes[1].predictions)
    assert outcomes[0].valid == outcomes[1].valid


def test_folds_choose_the_penalty(freesolv):
    split = make_split(freesolv, "random", 0)
    bits = ecfp4(freesolv.smiles, bits=256).astype(np.float64)
    x, y = bits[split.train], freesolv.labels[split.train, 0]
    folds = PredefinedSplit(folds_of(split, freesolv))
    ridges = [make_pipeline(StandardScaler(), Ridge(alpha=penalty)) for penalty in models.PENALTIES]
    score = partial(cross_val_score, X=x, y=y, cv=folds, scoring="neg_root_mean_squared_error")
    scores = np.array([score(ridge) for ridge in ridges])
    mean, error = scores.mean(axis=1), scores.std(axis=1, ddof=1) / np.sqrt(FOLDS)
    best = int(mean.argmax())
    assert 0 < best < len(ridges) - 1, "the range of penalties reaches past the best"
    within = int(np.flatnonzero(mean >= mean[best] - error[best]).max())  # the strongest penalty
    assert best < within < len(ridges) - 1
    chosen = models.linear(bits, freesolv, split, 0, quiet)
    expected = ridges[within].fit(x, y).predict(bits)
    np.testing.assert_allclose(chosen.predictions[:, 0], expected)
    assert chosen.valid == pytest.approx(rmse(expected[split.valid], freesolv.labels[split.valid, 0]))


@pytest.mark.parametrize("model", OF_BITS)
def test_validation_chooses_nothing(freesolv, model):
    split = make_split(freesolv, "random", 0)
    other = replace(freesolv, labels=freesolv.labels.copy())
    other.labels[split.valid] *= -1
    bits = ecfp4(freesolv.smiles, bits=256)
    outcomes = [model(bits, data, split, 0, quiet) for data in (freesolv, other)]
    np.testing.assert_array_equal(outcomes[0].predictions, outcomes[1].predictions)
    assert outcomes[0].valid != outcomes[1].valid


def test_no_feature_is_farther_out_than_in_training(freesolv):
    split = make_split(freesolv, "random", 0)
    x = told(freesolv).value
    still = np.random.default_rng(0).normal(scale=1e-6, size=(len(x), 1)).astype(x.dtype)
    still[split.test[0]] = 1e3
    y = models.linear(np.hstack([x, still]), freesolv, split, 0, quiet).predictions[split.test[0], 0]
    assert y == pytest.approx(models.linear(x, freesolv, split, 0, quiet).predictions[split.test[0], 0], abs=0.5)


@pytest.mark.parametrize("kernel", [rbf_kernel, tanimoto_kernel])
def test_features_of_a_kernel_have_its_values_for_products(freesolv, kernel, monkeypatch):
    bits = ecfp4(freesolv.smiles[:60], bits=256).astype(np.float64)
    bits[:2] = bits[2:4]  # twins have one landmark too many
    learned, wanted = features_of_kernel(kernel, bits[:40], bits)
    assert learned.shape[1] <= 40, "only molecules to learn from are landmarks"
    np.testing.assert_allclose(learned @ learned.T, kernel(bits[:40], bits[:40]), atol=1e-6)
    np.testing.assert_allclose(wanted @ learned.T, kernel(bits, bits[:40]), atol=1e-6)
    monkeypatch.setattr(kernels, "LANDMARKS", 30)
    few, _ = features_of_kernel(kernel, bits[:40], bits)
    assert few.shape[1] <= 30
    off = np.abs(few @ few.T - kernel(bits[:40], bits[:40]))
    assert np.sort(off.max(axis=1))[:30].max() < 1e-6 < off.max(), "between landmarks they are exact"


@pytest.mark.parametrize("model", [models.rbf, models.tanimoto])
def test_no_test_molecule_is_a_landmark(freesolv, model, monkeypatch):
    monkeypatch.setattr(kernels, "LANDMARKS", 30)  # of 160 training molecules: which ones are taken tells
    split = make_split(freesolv, "random", 0)
    bits = ecfp4(freesolv.smiles, bits=256)
    other = bits.copy()
    other[split.test] = 1 - other[split.test]
    others = np.concatenate([split.train, split.valid])
    first, second = (model(x, freesolv, split, 0, quiet).predictions[others] for x in (bits, other))
    # Products of matrices of equal shape, row by row.
    np.testing.assert_allclose(first, second, rtol=1e-9)


def test_what_comes_of_molecules_alone_is_computed_once_for_labels_of_the_same_molecules(freesolv, monkeypatch):
    y = (freesolv.labels[:, 0] > -3).astype(float)
    holes = np.where(np.arange(len(y)) % 3 == 0, np.nan, y)
    data = replace(
        as_classification(freesolv),
        labels=np.stack([y, holes, 1 - y, 1 - holes, y], axis=1),
        label_names=tuple("abcde"),
    )
    split, bits = make_split(data, "random", 0), ecfp4(data.smiles, bits=256)
    computed = []

    def counted(kernel, learned, wanted):
        computed.append(len(learned))
        return features_of_kernel(kernel, learned, wanted)

    monkeypatch.setattr(models, "features_of_kernel", counted)
    together = models.rbf(bits, data, split, 0, quiet).predictions
    assert len(computed) == 2 * (FOLDS + 1), "each fold and the whole, for two sets of molecules"
    for label in range(5):
        alone = replace(data, labels=data.labels[:, [label]], label_names=data.label_names[label : label + 1])
        np.testing.assert_array_equal(together[:, [label]], models.rbf(bits, alone, split, 0, quiet).predictions)


def test_tanimoto_by_hand():
    a, b = np.array([[1, 1, 0], [0, 0, 0]], np.float32), np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(tanimoto_kernel(a, b), [[1 / 3, 1, 0], [0, 0, 1]])


def test_a_kernel_finds_what_no_line_tells():
    data = as_classification(some_of_freesolv())
    x = np.random.default_rng(0).normal(size=(200, 2))
    data = replace(data, labels=(x[:, :1] * x[:, 1:] > 0).astype(float))
    split = make_split(data, "random", 0)
    linear, rbf = (model(x, data, split, 0, quiet).valid for model in (models.linear, models.rbf))
    assert rbf > 0.9 > 0.7 > linear


def test_folds_that_cannot_judge_leave_the_simplest_model():
    data = as_classification(some_of_freesolv(20))
    data = replace(data, labels=np.r_[1.0, np.zeros(19)][:, None])
    split = replace(
        make_split(data, "random", 0), train=np.arange(16), valid=np.arange(16, 18), test=np.array([18, 19])
    )
    prediction = models.linear(told(data).value, data, split, 0, quiet).predictions[:, 0]
    assert prediction == pytest.approx(1 / 16, abs=0.01), "the strongest penalty leaves the share of ones"
    assert prediction[0] == prediction.max() > prediction[1:].max(), "and yet something is learned"


def test_a_number_of_neighbours_that_some_folds_lack_is_not_chosen():
    data = some_of_freesolv(42)
    split = replace(make_split(data, "random", 0), train=np.arange(39), valid=np.array([39]), test=np.array([40, 41]))
    folds = folds_of(split, data)
    assert sorted(np.bincount(folds)) == [7, 8, 8, 8, 8], "one fold learns of 32, four of 31"
    labels = data.labels.copy()
    judged_alone = folds == np.bincount(folds).argmin()
    labels[:39][judged_alone] = labels[:39][~judged_alone].mean()  # which 32 neighbours tell without an error
    data = replace(data, labels=labels)
    x = np.concatenate([np.cos(labels), np.sin(labels)], axis=1)
    prediction = models.nearest(x, data, split, 0, quiet).predictions[:39, 0]
    assert len(np.unique(prediction.round(6))) > 8, "few neighbours tell molecules apart, 32 of 39 hardly do"
