"""Folds keep a scaffold together where the split does, are of one size, and need no scaffold at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsa_dist.evaluate.folds import FOLDS, folds_of, scaffold_folds
from mmsa_dist.evaluate.split_files import load_split
from mmsa_dist.evaluate.splits import Split, make_split, scaffolds
from tests.fixtures.labelled import some_of_freesolv

RINGS = ["C1CC1", "C1CCC1", "C1CCCC1", "C1CCCCC1", "c1ccccc1", "c1ccncc1", "C1CCNCC1"]


@given(st.lists(st.sampled_from(RINGS), min_size=FOLDS, max_size=60))
def test_a_scaffold_that_fits_stays_together(rings):
    folds = scaffold_folds(rings)
    largest = len(rings) // FOLDS
    for ring in set(rings):
        of_ring = folds[np.array(rings) == ring]
        assert len(set(of_ring)) <= -(-len(of_ring) // largest)
    assert set(folds) <= set(range(FOLDS))


@pytest.mark.parametrize("scaffold", ["", "c1ccccc1"])
def test_one_scaffold_or_none_is_dealt_to_all_folds(scaffold):
    assert np.bincount(scaffold_folds([scaffold] * 30)).tolist() == [6] * FOLDS


def test_stereo_makes_another_scaffold():
    cis, trans = "C1C[C@H]2CCC[C@H]2C1", "C1C[C@H]2CCC[C@@H]2C1"
    folds = scaffold_folds(list(scaffolds([cis] * 2 + [trans] * 2 + ["C" * n + RINGS[n] for n in range(6)])))
    assert folds[0] == folds[1]
    assert folds[2] == folds[3]
    assert folds[0] != folds[2]


def test_few_molecules_are_a_fold_each():
    few = Split("file", None, np.arange(3), np.array([3]), np.array([4]))
    assert folds_of(few, some_of_freesolv(5)).tolist() == [0, 1, 2]


def test_they_part_molecules_as_the_split_does(tmp_path):
    data = some_of_freesolv()
    by_scaffold, at_random = make_split(data, "hu-scaffold"), make_split(data, "random", seed=1)
    learned = list(scaffolds(data.smiles[row] for row in by_scaffold.train))
    assert folds_of(by_scaffold, data).tolist() == scaffold_folds(learned).tolist()
    folds = folds_of(at_random, data)
    assert np.ptp(np.bincount(folds, minlength=FOLDS)) <= 1
    assert folds.tolist() != scaffold_folds(list(scaffolds(data.smiles[row] for row in at_random.train))).tolist()
    for split in (by_scaffold, at_random):
        read = load_split(split.write(tmp_path, data), data)
        assert folds_of(read, data).tolist() == folds_of(split, data).tolist()
