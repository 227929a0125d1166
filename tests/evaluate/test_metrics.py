"""Scoring of predictions, and fingerprints."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mmsa_dist.evaluate.fingerprints import ecfp4
from mmsa_dist.evaluate.metrics import better, learnable_labels, score_labels
from mmsa_dist.evaluate.moleculenet import Task


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
    assert [math.isnan(value) for value in judged.per_label] == [False, False, True, False]
    assert np.nanmean(judged.per_label) == judged.value
    two = score_labels(truth, guess, "roc_auc", np.array([True, False, True, True]))
    assert (two.value, two.labels_scored) == (pytest.approx(np.mean([judged.per_label[t] for t in (0, 3)])), 2)


def test_labels_that_can_be_learned():
    labels = np.array([[0, 1, np.nan, 0], [1, 1, np.nan, np.nan]])
    classes, values = Task("a", "classification", "roc_auc", ("a",)), Task("b", "regression", "rmse", ("b",))
    assert learnable_labels(labels, classes).tolist() == [True, False, False, False]
    assert learnable_labels(labels, values).tolist() == [True, True, False, True]


def test_fingerprints():
    bits = ecfp4(["CCO", "OCC", "c1ccccc1"])
    assert bits.shape == (3, 2048)
    assert np.array_equal(bits[0], bits[1])
    assert bits[0].sum() == 6  # CH3, CH2, OH; and each with its neighbours, of which both ends differ
    with pytest.raises(ValueError, match="row 1: 'x' does not parse"):
        ecfp4(["C", "x"])
