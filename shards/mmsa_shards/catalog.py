"""First stage: records -> standardized molecules, sorted along one axis that says where each will go.

The axis is a hash of the InChIKey's first block (the skeleton), spread evenly over [0, 2^64). A shard is an
interval of it, so stereoisomers and duplicates meet in one shard whatever files they come from, and how many
shards there are can be decided after everything has been read. A chunk of records becomes one file sorted
along the axis, from which a shard later reads its interval alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmsa_shards.atomic import write_atomically
from mmsa_shards.options import PrepareOptions, Standardization
from mmsa_shards.read import Record, Refused, read_records
from mmsa_shards.rejects import write_refused
from mmsa_shards.standardize import Refusal, standardize_many

AXIS = 1 << 64

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("position", pa.uint64(), nullable=False),
        pa.field("inchikey", pa.string(), nullable=False),
        pa.field("smiles", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        # float32 (A, 3) in Å, atoms in the order of the SMILES; null where the input gave no 3D.
        pa.field("xyz", pa.binary()),
        pa.field("conformer_source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
    ]
)

# A chunk is what one task takes: few records at first, so that all workers soon have something to do, then
# more, so that there are not too many files; and never more text than is comfortable to hold.
_FIRST_CHUNK, _LARGEST_CHUNK = 256, 32768
_CHUNKS_PER_DOUBLING = 8
_CHUNK_CHARACTERS = 1 << 25


@dataclass(frozen=True)
class ChunkCounts:
    """What became of the records of a chunk."""

    read: int
    kept: int
    excluded: int
    rejected: int
    kept_val: int
    """How many of those kept lie in the validation interval."""


def position_of(inchikey: str) -> int:
    """Returns where a molecule stands on the axis, in [0, 2^64)."""
    skeleton = inchikey.partition("-")[0]
    return int.from_bytes(hashlib.blake2b(skeleton.encode(), digest_size=8).digest(), "little")


def chunks_of(records: Iterable[Record | Refused]) -> Iterator[list[Record | Refused]]:
    """Cuts records into chunks; equal records give equal chunks."""
    number, chunk, characters = 0, list[Record | Refused](), 0
    for record in records:
        chunk.append(record)
        characters += len(record.structure.text) if isinstance(record, Record) else 0
        size = min(_LARGEST_CHUNK, _FIRST_CHUNK << (number // _CHUNKS_PER_DOUBLING))
        if len(chunk) == size or characters >= _CHUNK_CHARACTERS:
            yield chunk
            number, chunk, characters = number + 1, [], 0
    if chunk:
        yield chunk


def skeletons(paths: Sequence[str], options: PrepareOptions) -> frozenset[str]:
    """Returns the first blocks of the InChIKeys in files of molecules that must not enter."""
    found: set[str] = set()
    for path in paths:
        for chunk in chunks_of(read_records(path, options)):
            structures = [record.structure for record in chunk if isinstance(record, Record)]
            for parent in standardize_many(structures, Standardization.from_options(options)):
                if not isinstance(parent, Refusal):
                    found.add(parent.inchikey.partition("-")[0])
    return frozenset(found)


def catalog_chunk(
    path: Path, chunk: Sequence[Record | Refused], excluded: frozenset[str], options: PrepareOptions
) -> ChunkCounts:
    """Standardizes a chunk and writes it, sorted along the axis, with its refusals beside it.

    Args:
        path: of the file to write; its refusals take the same name with ``.rejects``.
        chunk: records, and refusals from reading.
        excluded: first blocks of InChIKeys that must not enter.
        options: those of `Standardization`, `conformers` and `val_fraction` are used.
    """
    records = [record for record in chunk if isinstance(record, Record)]
    refused = [record for record in chunk if isinstance(record, Refused)]
    rows: list[tuple[Any, ...]] = []
    num_excluded = 0
    parents = standardize_many([record.structure for record in records], Standardization.from_options(options))
    for record, parent in zip(records, parents, strict=True):
        if isinstance(parent, Refusal):
            refused.append(Refused(record.id, record.place, parent.reason, parent.message))
        elif parent.inchikey.partition("-")[0] in excluded:
            num_excluded += 1
        else:
            xyz = None if parent.xyz is None or options.conformers == "none" else parent.xyz.tobytes()
            rows.append(
                (position_of(parent.inchikey), parent.inchikey, parent.smiles, record.id, xyz,
                 record.conformer_source, *record.place)
            )  # fmt: skip
    rows.sort(key=lambda row: row[0])
    val_end = end_of_val(options.val_fraction)
    counts = ChunkCounts(
        read=len(chunk),
        kept=len(rows),
        excluded=num_excluded,
        rejected=len(refused),
        kept_val=sum(row[0] < val_end for row in rows),
    )
    write_refused(path, refused)
    columns = zip(*rows, strict=True) if rows else [()] * len(CATALOG_SCHEMA)
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, CATALOG_SCHEMA, strict=True)],
        schema=CATALOG_SCHEMA.with_metadata({"counts": json.dumps(asdict(counts))}),
    )
    with write_atomically(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return counts


def end_of_val(val_fraction: float) -> int:
    """Returns where the validation interval, which begins at 0, ends and the training interval begins."""
    return int(val_fraction * AXIS)


def chunk_counts(path: Path) -> ChunkCounts:
    """Reads the counts of a chunk that is done."""
    return ChunkCounts(**json.loads(_open_table(path).schema.metadata[b"counts"]))


def read_interval(paths: Sequence[Path], start: int, end: int) -> pa.Table:
    """Reads what chunks hold of the interval [start, end) of the axis, as a table of `CATALOG_SCHEMA`."""
    parts = [CATALOG_SCHEMA.empty_table()]
    for path in paths if end > start else ():
        table = _open_table(path).read_all().replace_schema_metadata(None)
        positions = table["position"].to_numpy()
        first = np.searchsorted(positions, np.uint64(start), side="left")
        last = np.searchsorted(positions, np.uint64(end - 1), side="right")
        parts.append(table.slice(first, last - first))
    return pa.concat_tables(parts)


def _open_table(path: Path) -> pa.RecordBatchFileReader:
    # Mapped, so that of a chunk only the interval asked for is ever read.
    return pa.ipc.open_file(pa.memory_map(str(path)))
