"""Folds keep a scaffold together, are of one size, and need no scaffold at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsa_dist.evaluate.folds import FOLDS, scaffold_folds

RINGS = ["C1CC1", "C1CCC1", "C1CCCC1", "C1CCCCC1", "c1ccccc1", "c1ccncc1", "C1CCNCC1"]


@given(st.lists(st.tuples(st.sampled_from(RINGS), st.integers(0, 3)), min_size=FOLDS, max_size=60))
def test_a_scaffold_that_fits_stays_together(molecules):
    folds = scaffold_folds(["C" * tail + ring for ring, tail in molecules])
    rings = np.array([ring for ring, _ in molecules])
    largest = len(molecules) // FOLDS
    for ring in set(rings):
        of_ring = folds[rings == ring]
        assert len(set(of_ring)) <= -(-len(of_ring) // largest)
    assert set(folds) <= set(range(FOLDS))


@pytest.mark.parametrize("smiles", [["C" * n for n in range(1, 31)], ["C" * n + "c1ccccc1" for n in range(30)]])
def test_one_scaffold_or_none_is_dealt_to_all_folds(smiles):
    assert np.bincount(scaffold_folds(smiles)).tolist() == [6] * FOLDS


def test_stereo_makes_another_scaffold():
    cis, trans = "C1C[C@H]2CCC[C@H]2C1", "C1C[C@H]2CCC[C@@H]2C1"
    folds = scaffold_folds([cis] * 2 + [trans] * 2 + ["C" * n + RINGS[n] for n in range(6)])
    assert folds[0] == folds[1]
    assert folds[2] == folds[3]
    assert folds[0] != folds[2]


def test_few_molecules_are_a_fold_each():
    assert scaffold_folds(["C", "CC", "CCC"]).tolist() == [0, 1, 2]
    assert scaffold_folds([]).tolist() == []
