"""The order of an epoch: complete, elastic, repeatable."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa_dist.data.order import EpochOrder
from mmsa_dist.data.sizes import BlockSizes


def molecules_of(order: EpochOrder, lane: int, start: int, stop: int) -> list[tuple[int, int]]:
    found = []
    for piece in order.pieces(lane, start, stop):
        blocks, rows = order.window(lane, piece.window)
        found += list(zip(blocks[piece.start : piece.stop], rows[piece.start : piece.stop], strict=True))
    return found


def whole_lane(order: EpochOrder, lanes: int, lane: int) -> list[tuple[int, int]]:
    size = order.molecules * (lane + 1) // lanes - order.molecules * lane // lanes
    return molecules_of(order, lane, 0, size)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=30))
    lanes = draw(st.integers(1, len(sizes)))
    return sizes, lanes, draw(st.integers(1, 5)), draw(st.integers(0, 5))


@given(layouts())
@settings(max_examples=200, deadline=None)
def test_every_molecule_has_one_place_in_an_epoch(layout: tuple[list[int], int, int, int]) -> None:
    sizes, lanes, window, epoch = layout
    order = EpochOrder(BlockSizes.of(np.array(sizes)), seed=1, epoch=epoch, lanes=lanes, window_blocks=window)
    seen = [molecule for lane in range(lanes) for molecule in whole_lane(order, lanes, lane)]
    everything = [(block, row) for block, size in enumerate(sizes) for row in range(size)]
    assert sorted(seen) == everything


@given(layouts(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_any_cut_of_a_lane_gives_the_same_molecules(layout: tuple[list[int], int, int, int], share: int) -> None:
    sizes, lanes, window, epoch = layout
    order = EpochOrder(BlockSizes.of(np.array(sizes)), seed=1, epoch=epoch, lanes=lanes, window_blocks=window)
    for lane in range(lanes):
        whole = whole_lane(order, lanes, lane)
        pieces = [molecules_of(order, lane, s, min(s + share, len(whole))) for s in range(0, len(whole), share)]
        assert [molecule for piece in pieces for molecule in piece] == whole


def test_lanes_are_equal_to_within_one_and_only_a_partial_batch_is_left() -> None:
    order = EpochOrder(BlockSizes.of(np.full(10, 7)), seed=0, epoch=0, lanes=4, window_blocks=2)
    assert [len(whole_lane(order, 4, lane)) for lane in range(4)] == [17, 18, 17, 18]
    assert order.steps(batch_size=8) == 8  # 17 molecules of the shortest lane, two a step


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def first(seed: int, epoch: int) -> list[tuple[int, int]]:
        order = EpochOrder(BlockSizes.of(np.full(20, 8)), seed=seed, epoch=epoch, lanes=4, window_blocks=2)
        return whole_lane(order, 4, 0)

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


def test_a_lane_mixes_the_blocks_of_its_window() -> None:
    order = EpochOrder(BlockSizes.of(np.full(8, 50)), seed=0, epoch=0, lanes=2, window_blocks=4)
    blocks = [block for block, _ in whole_lane(order, 2, 0)]
    assert len(set(blocks[:20])) == 4


def test_more_lanes_than_blocks_is_refused_with_the_mend() -> None:
    with pytest.raises(ValueError, match=r"data\.lanes=4 is more than the 3 blocks.*molecules_per_block"):
        EpochOrder(BlockSizes.of(np.array([5, 5, 5])), seed=0, epoch=0, lanes=4, window_blocks=1)


def test_lanes_change_windows_at_different_steps() -> None:
    order = EpochOrder(BlockSizes.of(np.full(64, 8)), seed=0, epoch=0, lanes=4, window_blocks=4)
    assert [order.pieces(lane, 0, 16 * 8)[0].stop for lane in range(4)] == [32, 24, 16, 8]


def test_a_billion_molecules_with_odd_blocks_cost_little_memory() -> None:
    sizes = np.full(4_000_000, 256, np.uint32)
    sizes[255::256] = np.arange(15_625) % 256 + 1
    tracemalloc.start()
    order = EpochOrder(BlockSizes.of(sizes), seed=0, epoch=5, lanes=64, window_blocks=16)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 10e6
    assert order.molecules == sizes.sum()
    step = order.steps(4096) - 1
    seen = [molecule for lane in range(64) for molecule in molecules_of(order, lane, 64 * step, 64 * (step + 1))]
    assert len(set(seen)) == len(seen) == 4096
    assert all(0 <= row < sizes[block] for block, row in seen)
