"""The order of an epoch: a pure function of (seed, epoch, step), the same for any number of ranks.

Blocks are permuted by seed and epoch; the M molecules in that order are cut into L lanes of M/L molecules, equal
to within one; each lane shuffles its molecules within windows of consecutive blocks. A global batch takes the same
number of molecules from every lane, and rank r of W serves lanes r, r + W, r + 2W, … So no molecule occurs twice in
an epoch, no rank runs dry before another, and a resumed run on another number of ranks sees the same batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    """The order of the molecules of one epoch.

    Args:
        block_molecules: (n,) int, molecules in each block of the manifest split, in manifest order.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        lanes: L, at most the number of blocks.
        window_blocks: blocks among which a lane shuffles.

    Raises:
        ValueError: there are fewer blocks than lanes.
    """

    def __init__(self, block_molecules: np.ndarray, *, seed: int, epoch: int, lanes: int, window_blocks: int) -> None:
        if lanes > len(block_molecules):
            raise ValueError(
                f"data.lanes={lanes} is more than the {len(block_molecules)} blocks of the training shards; lower "
                "data.lanes, or prepare with a smaller prepare.molecules_per_block"
            )
        self._key = (seed, epoch)
        self._lanes = lanes
        self._window_blocks = window_blocks
        # 12 bytes a block, 47 MB for a billion molecules: the permutation in four, the ends in eight.
        self._blocks = np.arange(len(block_molecules), dtype=np.uint32)
        np.random.default_rng(self._key).shuffle(self._blocks)
        self._ends = np.cumsum(block_molecules[self._blocks], dtype=np.int64)
        self.molecules = int(self._ends[-1])

    def steps(self, batch_size: int) -> int:
        """Global batches of `batch_size` molecules in the epoch; the last, partial one is left out."""
        return (self.molecules // self._lanes) // (batch_size // self._lanes)

    def _lane_range(self, lane: int) -> tuple[int, int]:
        return self.molecules * lane // self._lanes, self.molecules * (lane + 1) // self._lanes

    def _window_bounds(self, lane: int) -> np.ndarray:
        """(windows + 1,) positions in the permuted molecule order at which the windows of a lane meet."""
        begin, end = self._lane_range(lane)
        first = int(np.searchsorted(self._ends, begin, side="right"))
        last = int(np.searchsorted(self._ends, end - 1, side="right"))
        inner = self._ends[first + self._window_blocks - 1 : last : self._window_blocks]
        return np.concatenate([[begin], inner, [end]])

    def pieces(self, lane: int, start: int, stop: int) -> list[Piece]:
        """Which parts of which windows hold molecules `start:stop` of a lane."""
        bounds = self._window_bounds(lane) - self._lane_range(lane)[0]
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, stop, side="left"))
        return [
            Piece(w, max(start - int(bounds[w]), 0), min(stop, int(bounds[w + 1])) - int(bounds[w]))
            for w in range(first, last)
        ]

    def window(self, lane: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The molecules of a window in their shuffled order: (n,) block numbers and (n,) rows in their block."""
        bounds = self._window_bounds(lane)
        begin, end = int(bounds[window]), int(bounds[window + 1])
        shuffle = np.random.default_rng((*self._key, lane, window)).permutation(end - begin)
        positions = begin + shuffle
        slots = np.searchsorted(self._ends, positions, side="right")
        starts = np.where(slots > 0, self._ends[slots - 1], 0)
        return self._blocks[slots].astype(np.int64), positions - starts
