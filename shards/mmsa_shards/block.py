"""Molecules <-> block: one Arrow record batch of columns, and its bytes.

Needs only numpy and pyarrow, not rdkit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmsa_shards.schema import (
    BLOCK_SCHEMA,
    CONFORMER_SOURCES,
    SCHEMA_VERSION,
    STEPS_PER_ANGSTROM,
    STEPS_PER_DRAWING_UNIT,
    VERSION_KEY,
)

Compression = Literal["zstd", "lz4", "none"]

# Of 2,560 random PubChem molecules with a conformer, in blocks of 256, each takes 348 bytes and 5 µs at level 3,
# 322 and 27 at 9, 307 and 102 at 12, 300 and 185 at 15, 297 and 607 at 19. Decoding time is the same at all levels.
_ZSTD_LEVEL = 12


@dataclass(frozen=True)
class Molecule:
    """A molecule of A atoms and E bonds, with one field per column of the schema."""

    id: str
    inchikey: str
    smiles: str
    atoms: NDArray[np.uint8]
    """(A, 9): columns of `mmsa_shards.schema.AtomColumn`."""
    bonds: NDArray[np.uint8]
    """(E, 4): columns of `mmsa_shards.schema.BondColumn`."""
    bond_ends: NDArray[np.uint16]
    """(E, 2): indices of the two atoms."""
    xy: NDArray[np.float32]
    """(A, 2): depiction, RDKit's units; (0, 2) if none was made, which is not allowed in shards. The block stores
    relative positions, exact to 0.01."""
    conformers: NDArray[np.float32]
    """(n, A, 3), Å: n conformers, possibly 0. The block stores relative positions, exact to 0.001 Å."""
    conformer_source: str
    """One of `mmsa_shards.schema.CONFORMER_SOURCES`."""
    descriptors: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    """(F,): values of `mmsa_shards.descriptors.NAMES`, NaN if undefined; (0,) if they were not requested."""


def molecules_to_block(molecules: Sequence[Molecule]) -> pa.RecordBatch:
    """Packs molecules into one record batch of `BLOCK_SCHEMA`, preserving their order.

    Raises:
        ValueError: there are coordinates for which `fits` is false.
    """
    conformers = [conformer for molecule in molecules for conformer in molecule.conformers]
    drawings = [molecule.xy for molecule in molecules]
    try:
        xyz = _list_of_rows("conformers", _steps(conformers, STEPS_PER_ANGSTROM), map(len, conformers), inner=True)
        xy = _list_of_rows("xy", _steps(drawings, STEPS_PER_DRAWING_UNIT), map(len, drawings))
    except OverflowError as error:
        raise ValueError(f"{error}: leave out conformers for which `fits` is false") from error
    columns = {
        "id": pa.array([molecule.id for molecule in molecules], pa.string()),
        "inchikey": pa.array([molecule.inchikey for molecule in molecules], pa.string()),
        "smiles": pa.array([molecule.smiles for molecule in molecules], pa.string()),
        "atoms": _rows("atoms", [molecule.atoms for molecule in molecules]),
        "bonds": _rows("bonds", [molecule.bonds for molecule in molecules]),
        "bond_ends": _rows("bond_ends", [molecule.bond_ends for molecule in molecules]),
        "xy": xy,
        "conformers": pa.ListArray.from_arrays(
            _offsets([len(molecule.conformers) for molecule in molecules]),
            xyz,
            type=BLOCK_SCHEMA.field("conformers").type,
        ),
        # Every block has the same dictionary, so that codes mean the same everywhere.
        "conformer_source": pa.DictionaryArray.from_arrays(
            pa.array([CONFORMER_SOURCES.index(m.conformer_source) for m in molecules], pa.int8()),
            pa.array(CONFORMER_SOURCES, pa.string()),
        ),
        "descriptors": pa.ListArray.from_arrays(
            _offsets([len(molecule.descriptors) for molecule in molecules]),
            pa.array(np.concatenate([np.empty(0, np.float32), *(molecule.descriptors for molecule in molecules)])),
            type=BLOCK_SCHEMA.field("descriptors").type,
        ),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in BLOCK_SCHEMA.names], schema=BLOCK_SCHEMA)


def fits(places: NDArray[np.float32], steps_per_unit: int) -> bool:
    """Returns whether a block can store coordinates: finite, each atom within 32,767 steps of the one before it.

    For conformers that is 32 Å. The length of the whole molecule does not matter: an all-trans chain of 500 carbons,
    620 Å long, fits. Fully stretched branches over 32 Å long, from whose end the numbering of atoms jumps back, do
    not.

    Args:
        places: (A, D).
        steps_per_unit: `STEPS_PER_ANGSTROM` or `STEPS_PER_DRAWING_UNIT` of `mmsa_shards.schema`.
    """
    # No step exceeds the range of the coordinates. Only if that is too large, or NaN, each step is checked.
    if len(places) and (places.max() - places.min()) * steps_per_unit < np.iinfo(np.int16).max - 1:
        return True
    try:
        _steps([places], steps_per_unit)
    except OverflowError:
        return False
    return True


def conformers_to_bytes(conformers: Sequence[NDArray[np.float32]]) -> list[bytes | None]:
    """Returns conformers, (A, 3) in Å each, as a block stores them; None for one for which `fits` is false.

    Conformers that a block cannot tell apart give equal bytes.
    """
    try:
        steps = _steps(conformers, STEPS_PER_ANGSTROM)
    except OverflowError:
        if len(conformers) == 1:
            return [None]
        return [kept for conformer in conformers for kept in conformers_to_bytes([conformer])]
    ends = np.cumsum([0, *map(len, conformers)]).tolist()
    return [steps[start:end].tobytes() for start, end in pairwise(ends)]


def conformer_from_bytes(data: bytes) -> NDArray[np.float32]:
    """Returns the (A, 3) float32 coordinates, Å, from `conformers_to_bytes`; the first atom is at the origin."""
    steps = np.frombuffer(data, np.int16).reshape(-1, 3)
    return (np.cumsum(steps, axis=0, dtype=np.int32) / STEPS_PER_ANGSTROM).astype(np.float32)


def encode_block(block: pa.RecordBatch, compression: Compression) -> bytes:
    """Returns a block as an Arrow IPC stream of one record batch; equal blocks give equal bytes."""
    sink = pa.BufferOutputStream()
    codec = {"zstd": pa.Codec("zstd", _ZSTD_LEVEL), "lz4": "lz4", "none": None}[compression]
    options = pa.ipc.IpcWriteOptions(compression=codec, use_threads=False)
    with pa.ipc.new_stream(sink, block.schema, options=options) as writer:
        writer.write_batch(block)
    return sink.getvalue().to_pybytes()


def decode_block(data: bytes | memoryview, columns: Sequence[str] = BLOCK_SCHEMA.names) -> pa.RecordBatch:
    """Reads a block from the bytes of `encode_block`.

    Args:
        data: the bytes.
        columns: of `BLOCK_SCHEMA`, in its order; others are not decompressed.

    Raises:
        ValueError: `data` is not an Arrow stream, or not of this schema or version.
    """
    # None for all columns: a list would be checked for every block.
    fields = None if len(columns) == len(BLOCK_SCHEMA) else [BLOCK_SCHEMA.get_field_index(name) for name in columns]
    try:
        with pa.ipc.open_stream(
            data, options=pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        ) as reader:
            block = reader.read_next_batch()
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise ValueError(f"not a block, which is an Arrow IPC stream of one record batch: {error}") from error
    version = (block.schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        raise ValueError(
            f"a block of schema version {version}, this program reads {SCHEMA_VERSION}; prepare the shards again"
        )
    if not block.schema.equals(BLOCK_SCHEMA if fields is None else pa.schema([BLOCK_SCHEMA.field(i) for i in fields])):
        raise ValueError(f"a block of another schema (columns {block.schema.names}); prepare the shards again")
    return block


def _steps(places: Sequence[NDArray[np.float32]], scale: int) -> NDArray[np.int16]:
    """Returns the step to each atom from the one before it, in units of 1/`scale`; the first of each array is zero.

    Args:
        places: (A, D) each.
        scale: steps per unit of `places`.

    Returns:
        (sum of A, D).

    Raises:
        OverflowError: a step is too long, or not finite.
    """
    if not places:
        return np.empty((0, 1), np.int16)
    # Positions are rounded, not steps, so that errors do not accumulate along a molecule.
    grid = np.rint(np.concatenate(places).astype(np.float64) * scale)
    longest = np.iinfo(np.int16).max
    finite = bool(np.isfinite(grid).all())
    if finite:
        steps = np.empty_like(grid)
        steps[1:] = grid[1:] - grid[:-1]
        firsts = np.cumsum([0, *map(len, places[:-1])])
        steps[firsts[firsts < len(steps)]] = 0
    if not finite or np.abs(steps).max(initial=0) > longest:
        raise OverflowError(
            "a block cannot keep coordinates that are not finite, or more than "
            f"{longest / scale:g} from one atom to the next"
        )
    return steps.astype(np.int16)


def _offsets(lengths: Iterable[int]) -> pa.Array:
    return pa.array(np.cumsum([0, *lengths]), pa.int32())


def _rows(column: str, arrays: Sequence[NDArray]) -> pa.ListArray:
    """Packs (length, width) arrays into a list column."""
    return _list_of_rows(column, np.concatenate(arrays) if arrays else np.empty(0), map(len, arrays))


def _list_of_rows(column: str, rows: NDArray, lengths: Iterable[int], *, inner: bool = False) -> pa.ListArray:
    """Splits `rows` into lists of `lengths`; `inner` means the lists within those of `column`."""
    kind = BLOCK_SCHEMA.field(column).type
    kind = kind.value_type if inner else kind
    fixed = kind.value_type
    dtype = fixed.value_type.to_pandas_dtype()
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel().astype(dtype, copy=False)), type=fixed)
    return pa.ListArray.from_arrays(_offsets(lengths), values, type=kind)
