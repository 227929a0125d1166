"""The order of an epoch: a pure function of (seed, epoch, step), the same for any number of ranks.

Blocks are permuted by seed and epoch; the M molecules in that order are cut into L lanes of M/L molecules, equal
to within one; each lane shuffles its molecules within windows of consecutive blocks. A global batch takes the same
number of molecules from every lane, and rank r of W serves lanes r, r + W, r + 2W, … So no molecule occurs twice in
an epoch, no rank runs dry before another, and a resumed run on another number of ranks sees the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def steps(self, batch_size: int) -> int:
        """Global batches of `batch_size` molecules in the epoch; the last, partial one is left out."""
        return (self.molecules // self._lanes) // (batch_size // self._lanes)

    def _lane_range(self, lane: int) -> tuple[int, int]:
        return self.molecules * lane // self._lanes, self.molecules * (lane + 1) // self._lanes

    def _first_slot(self, lane: int) -> int:
        """Where window 0 of a lane would begin if it were whole.

        It is cut short by another number of blocks in each lane, so that not all lanes need a new window, which is
        to be read, at the same step.
        """
        return int(self._slots.at(self._lane_range(lane)[0])) - lane * self._window_blocks // self._lanes

    def _window_range(self, lane: int, window: int) -> tuple[int, int]:
        """Positions in the permuted molecule order between which a window lies."""
        begin, end = self._lane_range(lane)
        first = self._first_slot(lane) + window * self._window_blocks
        low, high = self._slots.starts(np.array([first, first + self._window_blocks])).tolist()
        return max(low, begin), min(high, end)

    def pieces(self, lane: int, start: int, stop: int) -> list[Piece]:
        """Which parts of which windows hold molecules `start:stop` of a lane."""
        if start >= stop:
            return []
        begin = self._lane_range(lane)[0]
        ends = self._slots.at(begin + np.array([start, stop - 1]))
        first, last = ((ends - self._first_slot(lane)) // self._window_blocks).tolist()
        found = []
        for window in range(first, last + 1):
            low, high = self._window_range(lane, window)
            found.append(Piece(window, max(begin + start - low, 0), min(begin + stop, high) - low))
        return found

    def window(self, lane: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The molecules of a window in their shuffled order: (n,) block numbers and (n,) rows in their block."""
        begin, end = self._window_range(lane, window)
        shuffle = np.random.default_rng((*self._key, lane, window)).permutation(end - begin)
        positions = begin + shuffle
        slots = self._slots.at(positions)
        first = int(self._slots.at(begin))
        blocks = self._permutation.forward(np.arange(first, int(slots.max()) + 1))
        return blocks[slots - first], positions - self._slots.starts(slots)
