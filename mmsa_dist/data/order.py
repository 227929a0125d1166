"""The order of an epoch: a pure function of (seed, epoch, step), the same for any number of ranks.

Blocks are permuted by seed and epoch; the M molecules in that order are cut into L lanes of M/L molecules, equal
to within one; each lane shuffles its molecules within windows of consecutive blocks. A global batch takes the same
number of molecules from every lane, and rank r of W serves lanes r, r + W, r + 2W, … So no molecule occurs twice in
an epoch, no rank runs out before another, and a run resumed on another number of ranks uses the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mmsa_dist.data.permutation import Permutation
from mmsa_dist.data.sizes import BlockSizes


@dataclass(frozen=True)
class LoaderState:
    """The position of a run in its data: the next global batch."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Piece:
    """Molecules `start:stop` of the shuffled window `window` of a lane."""

    window: int
    start: int
    stop: int


class EpochOrder:
    """The order of the molecules in one epoch; its memory grows with the odd blocks only (see `BlockSizes`).

    Args:
        sizes: of the blocks of the manifest split, in manifest order.
        seed: seed of the run.
        epoch: from 0.
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
        # Where window 0 of a lane would begin if it were whole. Each lane cuts it short by a different number of
        # blocks, so that the lanes do not all have to read a new window at the same step.
        held_back = np.arange(lanes) * window_blocks // lanes
        self._first_slots = (self._slots.at(np.array(self._ends_of_lanes[:-1])) - held_back).tolist()

    def steps(self, batch_size: int) -> int:
        """Returns the number of full global batches of `batch_size` molecules in the epoch."""
        return (self.molecules // self._lanes) // (batch_size // self._lanes)

    def _borders(self, lane: int, windows: range) -> list[int]:
        """Returns where consecutive windows of a lane begin in the permuted molecule order, and where the last ends."""
        windows_and_next = np.arange(windows.start, windows.stop + 1)
        borders = self._slots.starts(self._first_slots[lane] + windows_and_next * self._window_blocks)
        return borders.clip(self._ends_of_lanes[lane], self._ends_of_lanes[lane + 1]).tolist()

    def pieces(self, lane: int, start: int, stop: int) -> list[Piece]:
        """Returns the parts of windows that hold the molecules `start:stop` of a lane."""
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
        """Returns the molecules of a window in shuffled order: (n,) block numbers and (n,) rows in their blocks."""
        begin, end = self._borders(lane, range(window, window + 1))
        shuffle = np.random.default_rng((*self._key, lane, window)).permutation(end - begin)
        positions = begin + shuffle
        slots = self._slots.at(positions)
        first = int(self._slots.at(begin))
        blocks = self._permutation.forward(np.arange(first, int(slots.max()) + 1))
        return blocks[slots - first], positions - self._slots.starts(slots)
