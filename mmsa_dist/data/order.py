"""The order of an epoch: a pure function of (seed, epoch, step), the same for any number of ranks.

Blocks are permuted by seed and epoch; the M molecules in that order are cut into L lanes of M/L molecules, equal
to within one; each lane shuffles its molecules within windows of consecutive blocks. A global batch takes the same
number of molecules from every lane, and rank r of W serves lanes r, r + W, r + 2W, … So no molecule occurs twice in
an epoch, no rank runs dry before another, and a resumed run on another number of ranks sees the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mmsa_dist.data.permutation import Permutation
from mmsa_dist.data.sizes import BlockSizes


@dataclass(frozen=True)
class LoaderState:
    """Where a run stands in its data: the next global batch to be used."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Piece:
    """Molecules `start:stop` of the shuffled window `window` of a lane."""

    window: int
    start: int
    stop: int


class EpochOrder:
    """The order of the molecules of one epoch; holds some numbers for each odd block, none for the others.

    Args:
        sizes: of the blocks of the manifest split, in manifest order.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        lanes: L, at most the number of blocks.
        window_blocks: blocks among which a lane shuffles.

    Raises:
        ValueError: there are fewer blocks than lanes.
    """

    def __init__(self, sizes: BlockSizes, *, seed: int, epoch: int, lanes: int, window_blocks: int) -> None:
        if lanes > len(sizes):
            raise ValueError(
                f"data.lanes={lanes} is more than the {len(sizes)} blocks of the training shards; lower "
                "data.lanes, or prepare with a smaller prepare.molecules_per_block"
            )
        self._key = (seed, epoch)
        self._lanes = lanes
        self._window_blocks = window_blocks
        self._permutation = Permutation(len(sizes), self._key)
        self._slots = sizes.moved(self._permutation.inverse(sizes.odd))
        self.molecules = sizes.molecules
        self._ends_of_lanes = [self.molecules * lane // lanes for lane in range(lanes + 1)]
        # Where window 0 of a lane would begin if it were whole. It is cut short by another number of blocks in each
        # lane, so that not all lanes need a new window, which is to be read, at the same step.
        held_back = np.arange(lanes) * window_blocks // lanes
        self._first_slots = (self._slots.at(np.array(self._ends_of_lanes[:-1])) - held_back).tolist()

    def steps(self, batch_size: int) -> int:
        """Global batches of `batch_size` molecules in the epoch; the last, partial one is left out."""
        return (self.molecules // self._lanes) // (batch_size // self._lanes)

    def _borders(self, lane: int, windows: range) -> list[int]:
        """Positions in the permuted molecule order at which consecutive windows of a lane begin, and the last ends."""
        windows_and_next = np.arange(windows.start, windows.stop + 1)
        borders = self._slots.starts(self._first_slots[lane] + windows_and_next * self._window_blocks)
        return borders.clip(self._ends_of_lanes[lane], self._ends_of_lanes[lane + 1]).tolist()

    def pieces(self, lane: int, start: int, stop: int) -> list[Piece]:
        """Which parts of which windows hold molecules `start:stop` of a lane."""
        if start >= stop:
            return []
        begin, end = self._ends_of_lanes[lane] + start, self._ends_of_lanes[lane] + stop
        slots = self._slots.at(np.array([begin, end - 1])).tolist()
        first, last = ((slot - self._first_slots[lane]) // self._window_blocks for slot in slots)
        windows = range(first, last + 1)
        borders = self._borders(lane, windows)
        return [
            Piece(window, max(begin, low) - low, min(end, high) - low)
            for window, (low, high) in zip(windows, pairwise(borders), strict=True)
        ]

    def window(self, lane: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The molecules of a window in their shuffled order: (n,) block numbers and (n,) rows in their block."""
        begin, end = self._borders(lane, range(window, window + 1))
        shuffle = np.random.default_rng((*self._key, lane, window)).permutation(end - begin)
        positions = begin + shuffle
        slots = self._slots.at(positions)
        first = int(self._slots.at(begin))
        blocks = self._permutation.forward(np.arange(first, int(slots.max()) + 1))
        return blocks[slots - first], positions - self._slots.starts(slots)
