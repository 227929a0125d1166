"""Reads SMILES into blocks in other processes, in order, a bounded distance ahead of the model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from mmsa_dist.embed.ahead import ahead
from mmsa_dist.embed.column import is_text_or_missing, not_text
from mmsa_dist.embed.pretrained import Inference
from mmsa_shards.options import NO_CONFORMERS, Columns, Conformers, SmilesOptions
from mmsa_shards.read import Structure

# Imported lazily, so that loading a model and embedding shards do not need RDKit.
if TYPE_CHECKING:
    from mmsa_shards.from_smiles import ReadSmiles

_ROWS_AT_ONCE = 256  # a quarter of a second of RDKit: long compared with sending them, short compared with a part

_TOO_LARGE = "too_many_atoms"
_OF_THE_MODEL = " of the shards that the model was trained on; no setting of an embedding changes that"


def options_of(
    inference: Inference, *, standardize: bool, embed_3d: bool, depiction: bool, inchikeys: bool
) -> SmilesOptions:
    """Returns the options with which SMILES are read for a model.

    Args:
        inference: of the model; defines standardization and 3D embedding.
        standardize: whether molecules are standardized; otherwise they are taken as drawn.
        embed_3d: whether a conformer is generated, with a seed derived from the InChIKey.
        depiction: whether pictures are drawn.
        inchikeys: whether InChIKeys are computed even without 3D.
    """
    how = inference.standardization
    conformers = Conformers(
        mode="etkdg", count=1, seed=inference.conformer_seed, timeout_s=inference.conformer_timeout_s
    )
    return SmilesOptions(
        standardization=how if standardize else how.as_drawn(),
        keys="wanted" if inchikeys or embed_3d else "none",
        columns=Columns(conformers=conformers if embed_3d else NO_CONFORMERS, depiction=depiction),
    )


def readers_for(asked: int, device: torch.device) -> int:
    """Returns the number of reader processes: `asked`, or one per core if that is 0.

    One core is left to feed a GPU. On a CPU, reading and computing share the cores without a reservation, since
    blocks are read ahead, and never many.
    """
    cores = len(os.sched_getaffinity(0))
    return asked or (cores if device.type == "cpu" else max(1, cores - 1))


def is_one_piece(rows: int) -> bool:
    """Returns whether `rows` rows are read as a single piece, before any computation."""
    return rows <= _ROWS_AT_ONCE


def read_ahead(
    rows: Sequence[object], options: SmilesOptions, *, batch_size: int, readers: int
) -> Iterator[ReadSmiles]:
    """Reads rows, about `batch_size` at a time, and prefetches the next while the caller works on these.

    Args:
        rows: SMILES or structures; other values are refused.
        options: how rows are read.
        batch_size: rows at a time, rounded down to whole pieces, at least one; one process reads each piece.
        readers: number of processes; threads wait for them.
    """
    pieces = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
    if len(pieces) == 1:
        yield _read(pieces[0], options)
        return
    read = ahead(lambda piece: _read(piece, options), pieces, readers)
    while together := list(islice(read, max(1, batch_size // _ROWS_AT_ONCE))):
        yield _joined(together)


def _read(rows: Sequence[object], options: SmilesOptions) -> ReadSmiles:
    from mmsa_shards.from_smiles import smiles_to_block

    read = smiles_to_block([row if isinstance(row, str | Structure) else None for row in rows], options)
    strange = {row: not_text(rows[row]) for row in read.refused if not is_text_or_missing(rows[row])}
    too_large = {row: (why, f"{said}{_OF_THE_MODEL}") for row, (why, said) in read.refused.items() if why == _TOO_LARGE}
    return replace(read, refused=read.refused | strange | too_large)


def _joined(pieces: Sequence[ReadSmiles]) -> ReadSmiles:
    """Concatenates pieces of `_ROWS_AT_ONCE` rows each; the last may have fewer."""
    from mmsa_shards.from_smiles import ReadSmiles

    firsts = [number * _ROWS_AT_ONCE for number in range(len(pieces))]
    return ReadSmiles(
        block=pa.concat_batches([piece.block for piece in pieces]),
        rows=np.concatenate([first + piece.rows for first, piece in zip(firsts, pieces, strict=True)]),
        refused={
            first + row: why for first, piece in zip(firsts, pieces, strict=True) for row, why in piece.refused.items()
        },
    )
