"""Retrieval, alignment and uniformity, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.losses.agreement import alignment, retrieval_at_1, uniformity


def test_retrieval_counts_hits_over_ordered_pairs():
    a = torch.eye(4)
    b = a[[1, 0, 2, 3]]  # molecules 0 and 1 find each other instead of themselves
    everyone = torch.ones(4, dtype=torch.bool)
    assert retrieval_at_1({"a": a, "b": b}, {"a": everyone, "b": everyone}) == 0.5
    without_0 = torch.tensor([False, True, True, True])
    assert retrieval_at_1({"a": a, "b": a}, {"a": without_0, "b": everyone}) == 1.0


def test_retrieval_without_a_pair_is_not_a_number():
    nobody = torch.zeros(2, dtype=torch.bool)
    assert retrieval_at_1({"a": torch.eye(2), "b": torch.eye(2)}, {"a": nobody, "b": ~nobody}).isnan()


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
