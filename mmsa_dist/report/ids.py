"""Ids that several molecules have: counted by their 64-bit hashes, eight bytes a molecule however long its id is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_EXAMPLES = 5


@dataclass(frozen=True)
class SharedIds:
    """What there is of them."""

    ids: int
    molecules: int
    """That have one of these ids."""
    examples: tuple[str, ...]
    """Those that come first."""


class IdCount:
    """Takes the ids of one block after the other."""

    def __init__(self) -> None:
        self._hashes: list[NDArray[np.uint64]] = []

    def add(self, ids: pa.Array) -> None:
        """Counts the ids of another block."""
        digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids.to_pylist())
        self._hashes.append(np.frombuffer(b"".join(digests), dtype=np.uint64))

    def shared(self, read: Callable[[int], pa.Array]) -> SharedIds:
        """Sums up.

        Args:
            read: gives the ids of a block that was added, by its number; asked for the examples.
        """
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *self._hashes])
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        starts = np.cumsum([0, *map(len, self._hashes)])
        rows = np.sort(first[counts > 1])[:_EXAMPLES]
        blocks = np.searchsorted(starts, rows, side="right") - 1  # of blocks without molecules the last begins there
        return SharedIds(
            ids=int((counts > 1).sum()),
            molecules=int(counts[counts > 1].sum()),
            examples=tuple(
                read(block)[row].as_py()
                for block, row in zip(blocks.tolist(), (rows - starts[blocks]).tolist(), strict=True)
            ),
        )
