"""SMILES to blocks in processes beside the one that computes the model, in order and not far ahead of it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmsa_dist.embed.column import is_text_or_missing, not_text
from mmsa_dist.embed.pretrained import Inference

T = TypeVar("T")
R = TypeVar("R")

_ROWS_AT_ONCE = 256  # a quarter of a second of RDKit: long beside what it takes to send them, short beside a part


@dataclass(frozen=True)
class Reading:
    """What SMILES are to become."""

    inference: Inference
    """Says how molecules are standardized, and embedded in 3D."""
    conformers: Literal["none", "etkdg"]
    drawn: bool
    """Whether pictures are to be drawn of them."""


@dataclass(frozen=True)
class ReadRows:
    """Rows of SMILES, read: row r is molecule i of the block where rows[i] = r, or it is refused."""

    block: pa.RecordBatch
    """N molecules."""
    rows: NDArray[np.int64]
    """(N,), ascending."""
    refused: dict[int, tuple[str, str]]
    """Reason (a word) and message (a sentence) of the others."""


def read_ahead(rows: Sequence[object], reading: Reading, *, batch_size: int, readers: int) -> Iterator[ReadRows]:
    """Reads rows, at most `batch_size` at a time; the next are read while the caller works on these.

    Args:
        rows: SMILES, and what else stands in their column.
        reading: what they are to become.
        batch_size: rows at a time; cut down to whole pieces, of which each is read by one process.
        readers: processes; 0 takes one for each core but one, which the caller has.
    """
    step = min(batch_size, _ROWS_AT_ONCE)
    pieces = [rows[start : start + step] for start in range(0, len(rows), step)]
    readers = min(len(pieces), readers or max(1, len(os.sched_getaffinity(0)) - 1))
    if len(pieces) == 1:
        yield _read(pieces[0], reading)
        return
    read = _ahead(lambda piece: _read(piece, reading), pieces, readers)
    while together := list(islice(read, batch_size // step)):
        yield _joined(together, step)


def _read(rows: Sequence[object], reading: Reading) -> ReadRows:
    # Here, so that a model loads and shards embed without RDKit.
    from mmsa_shards.from_smiles import smiles_to_block

    block, kept, refused = smiles_to_block(
        [row if isinstance(row, str) else None for row in rows],
        conformers=reading.conformers,
        seed=reading.inference.conformer_seed,
        conformer_timeout_s=reading.inference.conformer_timeout_s,
        standardization=reading.inference.standardization,
        drawn=reading.drawn,
    )
    strange = {row: not_text(rows[row]) for row in refused if not is_text_or_missing(rows[row])}
    return ReadRows(block, kept, refused | strange)


def _joined(pieces: Sequence[ReadRows], step: int) -> ReadRows:
    """One of pieces of `step` rows each, of which the last may have fewer."""
    return ReadRows(
        block=pa.concat_batches([piece.block for piece in pieces]),
        rows=np.concatenate([number * step + piece.rows for number, piece in enumerate(pieces)]),
        refused={number * step + row: why for number, piece in enumerate(pieces) for row, why in piece.refused.items()},
    )


def _ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yields ``function(item)`` in the order of the items, while up to `threads` of those that follow are made.

    Threads, because what they wait for is RDKit in the process of a guard.
    """
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
