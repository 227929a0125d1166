"""Retrieval, alignment and uniformity, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.losses.agreement import alignment, retrieval, uniformity


def test_retrieval_counts_hits_over_ordered_pairs():
    a = torch.eye(4)
    b = a[[1, 0, 2, 3]]  # molecules 0 and 1 find each other instead of themselves
    everyone = torch.ones(4, dtype=torch.bool)
    assert retrieval({"a": a, "b": b}, {"a": everyone, "b": everyone}) == (0.5, 0.25)
    without_0 = torch.tensor([False, True, True, True])
    assert retrieval({"a": a, "b": a}, {"a": without_0, "b": everyone}) == (1.0, pytest.approx(1 / 3))


def test_retrieval_without_a_pair_is_not_a_number():
    codes, everyone = {"a": torch.eye(2), "b": torch.eye(2)}, torch.ones(2, dtype=torch.bool)
    for some in (torch.tensor([False, False]), torch.tensor([True, False])):  # one alone is always found
        measured = retrieval(codes, {"a": some, "b": everyone})
        assert measured.at_1.isnan()
        assert measured.chance.isnan()


def test_chance_is_the_mean_over_pairs_of_one_over_those_to_choose_from():
    codes = {name: torch.eye(4) for name in "abc"}
    two, four = torch.tensor([True, True, False, False]), torch.ones(4, dtype=torch.bool)
    # a and b have 4 molecules in common, a and c and b and c 2.
    measured = retrieval(codes, {"a": four, "b": four, "c": two})
    assert float(measured.chance) == pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 3)


def test_alignment_is_the_squared_distance_of_unit_codes_of_one_molecule():
    everyone = torch.ones(3, dtype=torch.bool)
    a = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])  # the same, at a right angle, opposite: 0, 2 and 4
    assert alignment({"a": a, "b": b}, {"a": everyone, "b": everyone}) == pytest.approx(2.0)
    without_last = torch.tensor([True, True, False])
    assert alignment({"a": a, "b": b}, {"a": everyone, "b": without_last}) == pytest.approx(1.0)
    assert alignment({"a": a}, {"a": everyone}).isnan()


def test_uniformity_is_0_for_one_point_and_falls_with_distance():
    three = torch.ones(3, dtype=torch.bool)
    assert uniformity({"a": torch.ones(3, 2)}, {"a": three}) == pytest.approx(0.0)
    # Distances² 2, 2 and 4 between three unit codes.
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert uniformity({"a": apart}, {"a": three}) == pytest.approx(expected, rel=1e-5)
    assert uniformity({"a": apart}, {"a": torch.tensor([True, False, False])}).isnan()
