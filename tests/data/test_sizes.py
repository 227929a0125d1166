"""Blocks in a row, against sums over all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmsa_dist.data.sizes import BlockSizes

SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=30).filter(any)


@given(SIZES)
def test_starts_sizes_and_places_are_those_of_the_blocks(sizes: list[int]) -> None:
    row = BlockSizes.of(np.array(sizes))
    numbers = np.arange(len(sizes))
    assert (len(row), row.molecules) == (len(sizes), sum(sizes))
    assert row.sizes(numbers).tolist() == sizes
    assert row.starts(np.arange(len(sizes) + 1)).tolist() == [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    assert row.at(np.arange(sum(sizes))).tolist() == [n for n, size in enumerate(sizes) for _ in range(size)]


@given(SIZES, st.randoms())
def test_moved_blocks_keep_their_sizes(sizes: list[int], random) -> None:
    order = list(range(len(sizes)))
    random.shuffle(order)
    row = BlockSizes.of(np.array(sizes))
    moved = row.moved(np.argsort(order)[row.odd])
    assert moved.sizes(np.arange(len(sizes))).tolist() == [sizes[block] for block in order]


def test_only_odd_blocks_are_kept() -> None:
    row = BlockSizes.of(np.array([256, 256, 7, 256], np.uint32))
    assert (row.common, row.odd.tolist(), row.odd_sizes.tolist()) == (256, [2], [7])
