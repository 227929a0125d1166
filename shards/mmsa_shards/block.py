"""Molecules <-> block: one Arrow record batch of columns, and its bytes.

Needs numpy and pyarrow alone, no rdkit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmsa_shards.schema import BLOCK_SCHEMA, CONFORMER_SOURCES

Compression = Literal["zstd", "lz4", "none"]


@dataclass(frozen=True)
class Molecule:
    """A molecule of A atoms and E bonds as the block holds it: one field per column of the schema."""

    id: str
    inchikey: str
    smiles: str
    atoms: NDArray[np.uint8]
    """(A, 9): `mmsa_shards.schema.ATOM_CATEGORIES`."""
    bonds: NDArray[np.uint8]
    """(E, 4): `mmsa_shards.schema.BOND_CATEGORIES`."""
    bond_ends: NDArray[np.uint16]
    """(E, 2): numbers of the two atoms."""
    xy: NDArray[np.float32]
    """(A, 2): depiction, RDKit's units; kept as float16."""
    conformers: NDArray[np.float32]
    """(n, A, 3), Å: n conformers, 0 where there is none."""
    conformer_source: str
    """One of `mmsa_shards.schema.CONFORMER_SOURCES`."""


def molecules_to_block(molecules: Sequence[Molecule]) -> pa.RecordBatch:
    """Packs molecules into one record batch of `BLOCK_SCHEMA`, in their order."""
    conformers = [conformer for molecule in molecules for conformer in molecule.conformers]
    xyz = _rows("conformers", conformers, inner=True)
    columns = {
        "id": pa.array([molecule.id for molecule in molecules], pa.string()),
        "inchikey": pa.array([molecule.inchikey for molecule in molecules], pa.string()),
        "smiles": pa.array([molecule.smiles for molecule in molecules], pa.string()),
        "atoms": _rows("atoms", [molecule.atoms for molecule in molecules]),
        "bonds": _rows("bonds", [molecule.bonds for molecule in molecules]),
        "bond_ends": _rows("bond_ends", [molecule.bond_ends for molecule in molecules]),
        "xy": _rows("xy", [molecule.xy for molecule in molecules]),
        "conformers": pa.ListArray.from_arrays(
            _offsets([len(molecule.conformers) for molecule in molecules]),
            xyz,
            type=BLOCK_SCHEMA.field("conformers").type,
        ),
        # The dictionary is the same in every block, so that codes mean the same everywhere.
        "conformer_source": pa.DictionaryArray.from_arrays(
            pa.array([CONFORMER_SOURCES.index(m.conformer_source) for m in molecules], pa.int8()),
            pa.array(CONFORMER_SOURCES, pa.string()),
        ),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in BLOCK_SCHEMA.names], schema=BLOCK_SCHEMA)


def encode_block(block: pa.RecordBatch, compression: Compression) -> bytes:
    """Returns a block as an Arrow IPC stream of one record batch; equal blocks give equal bytes."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=None if compression == "none" else compression, use_threads=False)
    with pa.ipc.new_stream(sink, block.schema, options=options) as writer:
        writer.write_batch(block)
    return sink.getvalue().to_pybytes()


def decode_block(data: bytes | memoryview) -> pa.RecordBatch:
    """Reads the bytes of `encode_block`.

    Raises:
        ValueError: `data` is no Arrow stream, or not of this schema.
    """
    try:
        with pa.ipc.open_stream(data, options=pa.ipc.IpcReadOptions(use_threads=False)) as reader:
            block = reader.read_next_batch()
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise ValueError(f"not a block, which is an Arrow IPC stream of one record batch: {error}") from error
    if not block.schema.equals(BLOCK_SCHEMA):
        raise ValueError(f"a block of another schema (columns {block.schema.names}); prepare the shards again")
    return block


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())


def _rows(column: str, arrays: Sequence[NDArray], *, inner: bool = False) -> pa.ListArray:
    """Packs (length, width) arrays as a list column; `inner` is the list within the lists of `column`."""
    kind = BLOCK_SCHEMA.field(column).type
    kind = kind.value_type if inner else kind
    fixed = kind.value_type
    dtype = fixed.value_type.to_pandas_dtype()
    flat = np.concatenate([a.ravel() for a in arrays]) if arrays else np.empty(0)
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(dtype, copy=False)), type=fixed)
    return pa.ListArray.from_arrays(_offsets([len(a) for a in arrays]), values, type=kind)
