"""Ids shared by several molecules, counted by 64-bit hashes: eight bytes per molecule for ids of any length."""

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
    """Counts and examples of shared ids."""

    ids: int
    molecules: int
    """Number of molecules with one of these ids."""
    examples: tuple[str, ...]
    """The first ones."""


class IdCount:
    """Collects ids block by block."""

    def __init__(self) -> None:
        self._hashes: list[NDArray[np.uint64]] = []

    def add(self, ids: pa.Array) -> None:
        """Adds the ids of a block."""
        digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids.to_pylist())
        self._hashes.append(np.frombuffer(b"".join(digests), dtype=np.uint64))

    def shared(self, read: Callable[[int], pa.Array]) -> SharedIds:
        """Returns the shared ids of all blocks.

        Args:
            read: returns the ids of an added block by its number; called for the examples.
        """
        hashes = np.concatenate([np.empty(0, dtype=np.uint64), *self._hashes])
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        starts = np.cumsum([0, *map(len, self._hashes)])
        rows = np.sort(first[counts > 1])[:_EXAMPLES]
        blocks = np.searchsorted(starts, rows, side="right") - 1  # skips empty blocks with the same start
        return SharedIds(
            ids=int((counts > 1).sum()),
            molecules=int(counts[counts > 1].sum()),
            examples=tuple(
                read(block)[row].as_py()
                for block, row in zip(blocks.tolist(), (rows - starts[blocks]).tolist(), strict=True)
            ),
        )
