"""SMILES to blocks in processes beside the one that computes the model, in order and not far ahead of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from mmsa_dist.embed.ahead import ahead
from mmsa_dist.embed.column import is_text_or_missing, not_text
from mmsa_dist.embed.pretrained import Inference
from mmsa_shards.options import Standardization
from mmsa_shards.read import Structure

_ROWS_AT_ONCE = 256  # a quarter of a second of RDKit: long beside what it takes to send them, short beside a part

_TOO_LARGE = "too_many_atoms"
_OF_THE_MODEL = " of the shards that the model was trained on; no setting of an embedding changes that"


@dataclass(frozen=True)
class Reading:
    """What SMILES are to become."""

    inference: Inference
    """Says how molecules are embedded in 3D."""
    standardization: Standardization
    """What becomes of a SMILES before it is a molecule."""
    conformers: Literal["none", "etkdg"]
    drawn: bool
    """Whether pictures are to be drawn of them."""
    keyed: bool
    """Whether InChIKeys are made."""


@dataclass(frozen=True)
class ReadRows:
    """Rows of SMILES, read: row r is molecule i of the block where rows[i] = r, or it is refused."""

    block: pa.RecordBatch
    """N molecules."""
    rows: NDArray[np.int64]
    """(N,), ascending."""
    refused: dict[int, tuple[str, str]]
    """Reason (a word) and message (a sentence) of the others."""


def readers_for(asked: int, device: torch.device) -> int:
    """Returns how many processes are to read: `asked`, or where that is 0 one for each core.

    A GPU is fed by a core of its own. On a CPU those who read and those who compute share the cores as they come,
    since what is read lies ready, and never much of it.
    """
    cores = len(os.sched_getaffinity(0))
    return asked or (cores if device.type == "cpu" else max(1, cores - 1))


def is_one_piece(rows: int) -> bool:
    """Whether so many rows are read before anything is computed."""
    return rows <= _ROWS_AT_ONCE


def read_ahead(rows: Sequence[object], reading: Reading, *, batch_size: int, readers: int) -> Iterator[ReadRows]:
    """Reads rows, about `batch_size` at a time; the next are read while the caller works on these.

    Args:
        rows: SMILES or structures, and what else stands in their column.
        reading: what they are to become.
        batch_size: rows at a time; rounded down to whole pieces, at least one, of which each is read by one process.
        readers: processes; threads wait for them.
    """
    pieces = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
    if len(pieces) == 1:
        yield _read(pieces[0], reading)
        return
    read = ahead(lambda piece: _read(piece, reading), pieces, readers)
    while together := list(islice(read, max(1, batch_size // _ROWS_AT_ONCE))):
        yield _joined(together)


def _read(rows: Sequence[object], reading: Reading) -> ReadRows:
    # Here, so that a model loads and shards embed without RDKit.
    from mmsa_shards.from_smiles import smiles_to_block

    block, kept, refused = smiles_to_block(
        [row if isinstance(row, str | Structure) else None for row in rows],
        conformers=reading.conformers,
        seed=reading.inference.conformer_seed,
        conformer_timeout_s=reading.inference.conformer_timeout_s,
        standardization=reading.standardization,
        keys="wanted" if reading.keyed or reading.conformers == "etkdg" else "none",
        drawn=reading.drawn,
    )
    strange = {row: not_text(rows[row]) for row in refused if not is_text_or_missing(rows[row])}
    too_large = {row: (why, f"{said}{_OF_THE_MODEL}") for row, (why, said) in refused.items() if why == _TOO_LARGE}
    return ReadRows(block, kept, refused | strange | too_large)


def _joined(pieces: Sequence[ReadRows]) -> ReadRows:
    """One of pieces of `_ROWS_AT_ONCE` rows each, of which the last may have fewer."""
    firsts = [number * _ROWS_AT_ONCE for number in range(len(pieces))]
    return ReadRows(
        block=pa.concat_batches([piece.block for piece in pieces]),
        rows=np.concatenate([first + piece.rows for first, piece in zip(firsts, pieces, strict=True)]),
        refused={
            first + row: why for first, piece in zip(firsts, pieces, strict=True) for row, why in piece.refused.items()
        },
    )
