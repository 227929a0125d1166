"""How many molecules each of many blocks in a row holds, and so which molecules: without a number for each block.

Nearly all blocks of a manifest are of one size; only the last of a shard may be smaller. A billion molecules are four
million blocks and some ten thousand odd ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class BlockSizes:
    """Blocks in a row, all of `common` molecules except the `odd` ones.

    Positions count the molecules of all blocks, one block after the other.
    """

    blocks: int
    common: int
    odd: np.ndarray
    """(k,) int64, ascending: numbers of the odd blocks."""
    odd_sizes: np.ndarray
    """(k,) int64."""

    @classmethod
    def of(cls, sizes: np.ndarray) -> BlockSizes:
        """From the molecules of every block, (n,) of any integer type."""
        common = max(int(np.bincount(sizes).argmax()), 1) if len(sizes) else 1
        odd = np.flatnonzero(sizes != common)
        return cls(len(sizes), common, odd, sizes[odd].astype(np.int64))

    def __len__(self) -> int:
        return self.blocks

    @property
    def molecules(self) -> int:
        """In all blocks."""
        return self.blocks * self.common + int(self._surplus[-1])

    def starts(self, numbers: np.ndarray | int) -> np.ndarray:
        """Positions at which the blocks `numbers` begin; that of number `blocks` is where the last one ends."""
        before = np.searchsorted(self.odd, numbers, side="left")
        return np.asarray(numbers, np.int64) * self.common + self._surplus[before]

    def sizes(self, numbers: np.ndarray | int) -> np.ndarray:
        """Molecules of the blocks `numbers`."""
        return self.starts(numbers + 1) - self.starts(numbers)

    def at(self, positions: np.ndarray | int) -> np.ndarray:
        """Numbers of the blocks that hold the molecules at `positions`, which are below `molecules`."""
        numbers, sizes, starts = self._landmarks
        nearest = np.searchsorted(starts, positions, side="right") - 1
        beyond = positions - starts[nearest] - sizes[nearest]
        return numbers[nearest] + np.where(beyond < 0, 0, 1 + beyond // self.common)

    def moved(self, places: np.ndarray) -> BlockSizes:
        """The same blocks in another row, in which the odd ones have the numbers `places`, (k,) int64."""
        rank = np.argsort(places)
        return BlockSizes(self.blocks, self.common, places[rank], self.odd_sizes[rank])

    @cached_property
    def _surplus(self) -> np.ndarray:
        """(k + 1,) molecules by which the first 0..k odd blocks differ from as many common ones."""
        return np.concatenate([[0], np.cumsum(self.odd_sizes - self.common)])

    @cached_property
    def _landmarks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, sizes and starts of the odd blocks, and before them of a common one that would end at 0."""
        return (
            np.concatenate([[-1], self.odd]),
            np.concatenate([[self.common], self.odd_sizes]),
            np.concatenate([[-self.common], self.starts(self.odd)]),
        )
