"""Sizes and positions of the blocks of a manifest, without storing a number for each block.

Nearly all blocks of a manifest have the same size; only the last of a shard may be smaller. A billion molecules are
four million blocks, some ten thousand of which are odd.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class BlockSizes:
    """A sequence of blocks, all of `common` molecules except the `odd` ones.

    Positions count the molecules of all blocks in sequence.
    """

    blocks: int
    common: int
    odd: np.ndarray
    """(k,) int64, ascending: numbers of the odd blocks."""
    odd_sizes: np.ndarray
    """(k,) int64."""

    @classmethod
    def of(cls, sizes: np.ndarray) -> BlockSizes:
        """Summarizes the numbers of molecules of all blocks, (n,) of any integer type."""
        common = max(int(np.bincount(sizes).argmax()), 1) if len(sizes) else 1
        odd = np.flatnonzero(sizes != common)
        return cls(len(sizes), common, odd, sizes[odd].astype(np.int64))

    def __len__(self) -> int:
        return self.blocks

    @property
    def molecules(self) -> int:
        """Number of molecules in all blocks."""
        return self.blocks * self.common + int(self._surplus[-1])

    def starts(self, numbers: np.ndarray | int) -> np.ndarray:
        """Returns the positions at which the blocks `numbers` begin; for number `blocks`, where the last one ends."""
        before = np.searchsorted(self.odd, numbers, side="left")
        return np.asarray(numbers, np.int64) * self.common + self._surplus[before]

    def sizes(self, numbers: np.ndarray | int) -> np.ndarray:
        """Returns the numbers of molecules in the blocks `numbers`."""
        return self.starts(numbers + 1) - self.starts(numbers)

    def at(self, positions: np.ndarray | int) -> np.ndarray:
        """Returns the numbers of the blocks that hold the molecules at `positions`, all below `molecules`."""
        numbers, sizes, starts = self._landmarks
        nearest = np.searchsorted(starts, positions, side="right") - 1
        beyond = positions - starts[nearest] - sizes[nearest]
        return numbers[nearest] + np.where(beyond < 0, 0, 1 + beyond // self.common)

    def moved(self, places: np.ndarray) -> BlockSizes:
        """Returns the same blocks reordered, so that the odd ones have the numbers `places`, (k,) int64."""
        rank = np.argsort(places)
        return BlockSizes(self.blocks, self.common, places[rank], self.odd_sizes[rank])

    @cached_property
    def _surplus(self) -> np.ndarray:
        """(k + 1,): molecules by which the first 0..k odd blocks exceed as many common ones."""
        return np.concatenate([[0], np.cumsum(self.odd_sizes - self.common)])

    @cached_property
    def _landmarks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, sizes and starts of the odd blocks, preceded by those of a common one that would end at 0."""
        return (
            np.concatenate([[-1], self.odd]),
            np.concatenate([[self.common], self.odd_sizes]),
            np.concatenate([[-self.common], self.starts(self.odd)]),
        )
