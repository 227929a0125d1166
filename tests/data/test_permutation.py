"""Permutations that are computed, not kept."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa_dist.data.permutation import Permutation


@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_every_number_is_hit_once_and_found_again(n: int, seed: int, epoch: int) -> None:
    permutation, numbers = Permutation(n, (seed, epoch)), np.arange(n)
    images = permutation.forward(numbers)
    assert sorted(images.tolist()) == numbers.tolist()
    np.testing.assert_array_equal(permutation.inverse(images), numbers)
    some = numbers[:: max(n // 7, 1)]
    np.testing.assert_array_equal(permutation.forward(some), images[some])


def test_numbers_of_any_size() -> None:
    n = 10**13 + 37
    permutation = Permutation(n, (0, 0))
    numbers = np.array([0, 1, n // 2, n - 1])
    images = permutation.forward(numbers)
    assert ((images >= 0) & (images < n)).all()
    np.testing.assert_array_equal(permutation.inverse(images), numbers)


def test_all_orders_of_four_occur_about_as_often() -> None:
    counts = Counter(tuple(Permutation(4, (0, epoch)).forward(np.arange(4)).tolist()) for epoch in range(4800))
    chi_square = sum((counts[order] - 200) ** 2 / 200 for order in permutations(range(4)))
    assert chi_square < 49.7  # exceeded by one in a thousand uniform samples (23 degrees of freedom)


def test_neighbours_are_torn_apart() -> None:
    """Of a random permutation, places of i and i + 1 are uncorrelated, and so are i and its place."""
    n = 40_000
    images = Permutation(n, (1, 2)).forward(np.arange(n))
    for a, b in ((images[:-1], images[1:]), (np.arange(n), images)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / n**0.5
    counts = np.bincount(images[: n // 2] * 20 // n, minlength=20)  # the first half, over twenty equal parts
    assert ((counts - 1000) ** 2 / 500).sum() < 43.8  # hypergeometric, 19 degrees of freedom, one in a thousand
