"""SMILES to blocks in processes beside the one that computes the model, in order and not far ahead of it."""

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

# Imported where it is used, so that a model loads and shards are embedded without RDKit.
if TYPE_CHECKING:
    from mmsa_shards.from_smiles import ReadSmiles

_ROWS_AT_ONCE = 256  # a quarter of a second of RDKit: long beside what it takes to send them, short beside a part

_TOO_LARGE = "too_many_atoms"
_OF_THE_MODEL = " of the shards that the model was trained on; no setting of an embedding changes that"


def options_of(
    inference: Inference, *, standardize: bool, embed_3d: bool, depiction: bool, inchikeys: bool
) -> SmilesOptions:
    """Returns how SMILES are read for a model.

    Args:
        inference: of the model; says how molecules are standardized and embedded in 3D.
        standardize: whether they are standardized; otherwise they are taken as they are drawn.
        embed_3d: whether they get a conformer, whose seed is drawn from their InChIKey.
        depiction: whether pictures are drawn of them.
        inchikeys: whether InChIKeys are made in any case.
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
    """Returns how many processes are to read: `asked`, or where that is 0 one for each core.

    A GPU is fed by a core of its own. On a CPU those who read and those who compute share the cores as they come,
    since what is read lies ready, and never much of it.
    """
    cores = len(os.sched_getaffinity(0))
    return asked or (cores if device.type == "cpu" else max(1, cores - 1))


def is_one_piece(rows: int) -> bool:
    """Whether so many rows are read before anything is computed."""
    return rows <= _ROWS_AT_ONCE


def read_ahead(
    rows: Sequence[object], options: SmilesOptions, *, batch_size: int, readers: int
) -> Iterator[ReadSmiles]:
    """Reads rows, about `batch_size` at a time; the next are read while the caller works on these.

    Args:
        rows: SMILES or structures, and whatever else is in their column.
        options: how they are read.
        batch_size: rows at a time; rounded down to whole pieces, at least one, of which each is read by one process.
        readers: processes; threads wait for them.
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
    """Joins pieces of `_ROWS_AT_ONCE` rows each; the last may have fewer."""
    from mmsa_shards.from_smiles import ReadSmiles

    firsts = [number * _ROWS_AT_ONCE for number in range(len(pieces))]
    return ReadSmiles(
        block=pa.concat_batches([piece.block for piece in pieces]),
        rows=np.concatenate([first + piece.rows for first, piece in zip(firsts, pieces, strict=True)]),
        refused={
            first + row: why for first, piece in zip(firsts, pieces, strict=True) for row, why in piece.refused.items()
        },
    )
