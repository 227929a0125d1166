"""First stage: records -> standardized molecules, sorted along one axis that determines their shard.

The axis is a hash of the InChIKey's first block (the skeleton), uniform over [0, 2^64). A shard is an interval of
it, so stereoisomers and duplicates meet in one shard whatever files they come from, and the number of shards can be
chosen after everything has been read. A chunk of records becomes one file sorted along the axis, of which a shard
later reads only its interval.

An input is divided into chunks that depend only on its content. One task, or several if there are more workers than
inputs, reads an input from end to end and standardizes its share of the chunks. Machines exchange data only through
files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmsa_shards.atomic import write_atomically
from mmsa_shards.block import conformers_to_bytes
from mmsa_shards.errors import PrepareError
from mmsa_shards.job import Input, check_unchanged
from mmsa_shards.options import PrepareOptions, Standardization
from mmsa_shards.read import Record, Refused, read_records
from mmsa_shards.rejects import write_refused
from mmsa_shards.standardize import Parent, Refusal, standardize_many

AXIS = 1 << 64

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("position", pa.uint64(), nullable=False),
        pa.field("inchikey", pa.string(), nullable=False),
        pa.field("smiles", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        # From `conformers_to_bytes`, atoms in the order of the SMILES; null if the input has no 3D.
        pa.field("xyz", pa.binary()),
        pa.field("conformer_source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
    ]
)

# The first chunks are small, so that all workers soon have something to do; later ones are larger, so that there are
# not too many files. Their text is limited too, to bound memory.
_FIRST_CHUNK, _LARGEST_CHUNK = 256, 32768
_CHUNKS_PER_DOUBLING = 8
_CHUNK_CHARACTERS = 1 << 25

# Mapped chunks take no memory that the system cannot take back, but Linux maps only 65,530 files for a process, with
# those of its libraries. Of more chunks than this, the records of the interval are copied.
_MOST_MAPPED = 10_000

_DONE = "done.json"


@dataclass(frozen=True)
class ChunkCounts:
    """Counts of the records of one chunk by outcome, or sums over several chunks."""

    read: int = 0
    kept: int = 0
    excluded: int = 0
    rejected: int = 0
    kept_val: int = 0
    """Kept records in the validation interval."""
    input_bytes: int = 0
    """Bytes of the input that the records take up, as far as known."""
    changes: dict[str, int] = field(default_factory=dict)
    """Kept records that standardization changed, by kind of change."""

    def __add__(self, other: ChunkCounts) -> ChunkCounts:
        mine, theirs = asdict(self), asdict(other)
        changes = Counter(mine.pop("changes")) + Counter(theirs.pop("changes"))
        return ChunkCounts(**{name: mine[name] + theirs[name] for name in mine}, changes=dict(sorted(changes.items())))


class Chapter:
    """The chunks of one input, in a folder of their own.

    Args:
        catalog: the folder of all chapters.
        source: the input.
    """

    def __init__(self, catalog: Path, source: Input) -> None:
        self.source = source
        self.folder = catalog / source.key
        self.folder.mkdir(parents=True, exist_ok=True)
        self.counts = ChunkCounts()
        """Summed counts of the chunks found by `look`."""
        self._seen: set[str] = set()

    @property
    def chunks(self) -> list[Path]:
        """Files of all chunks in the order of the records; the chapter must be done."""
        count = json.loads((self.folder / _DONE).read_bytes())["chunks"]
        return [self.chunk(number) for number in range(count)]

    @property
    def is_done(self) -> bool:
        """Whether all chunks have been written."""
        return (self.folder / _DONE).exists()

    def chunk(self, number: int) -> Path:
        """Returns the file of a chunk."""
        return self.folder / f"{number:06d}.arrow"

    def close(self, num_chunks: int) -> None:
        """Marks the chapter as done, with this number of chunks."""
        with write_atomically(self.folder / _DONE) as file:
            file.write(json.dumps({"chunks": num_chunks}).encode())

    def clear(self) -> None:
        """Removes all chunks written so far."""
        # Not the refusals beside them: a chunk that a task is about to finish needs its own, and writes it anew.
        for path in self.folder.glob("*.arrow"):
            path.unlink()

    def look(self) -> ChunkCounts:
        """Returns the summed counts of the chunks written since the last look, which are added to `counts`."""
        new = [path for path in self.folder.glob("*.arrow") if path.name not in self._seen]
        found = sum(map(_chunk_counts, new), ChunkCounts())
        self._seen.update(path.name for path in new)
        self.counts += found
        return found


def catalog_input(
    chapter: Chapter, part: int, parts: int, excluded: frozenset[str], options: PrepareOptions
) -> tuple[str, int | PrepareError]:
    """Reads an input and standardizes those of its chunks ``part, part + parts, ...`` that have not been written yet.

    Returns:
        The key of the input, and its total number of chunks, or the error that makes it unusable. After a
        `ChangedError` its chunks are not those of any one state of it.
    """
    number, taken, before = -1, 0, 0

    def progress(num_bytes: int) -> None:
        nonlocal taken
        taken = num_bytes

    records = read_records(chapter.source.url, options, name=chapter.source.name, progress=progress)
    try:
        try:
            for number, chunk in enumerate(chunks_of(records)):
                path = chapter.chunk(number)
                if number % parts == part and not path.exists():
                    _catalog_chunk(path, chunk, taken - before, chapter.source, excluded, options)
                before = taken
        finally:  # a file that was replaced explains any other error
            check_unchanged(chapter.source)
    except PrepareError as error:
        return chapter.source.key, error
    return chapter.source.key, number + 1


def chunks_of(records: Iterable[Record | Refused]) -> Iterator[list[Record | Refused]]:
    """Groups records into chunks; equal records give equal chunks."""
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


def end_of_val(val_fraction: float) -> int:
    """Returns the end of the validation interval, which begins at 0, and so the start of the training interval."""
    return int(val_fraction * AXIS)


def read_interval(
    paths: Sequence[Path], start: int, end: int, most: int, beside: int = 0
) -> Iterator[tuple[int, int, pa.Table]]:
    """Yields the records of chunks in the interval [start, end) of the axis, one part of the interval at a time.

    Args:
        paths: files of the chunks.
        start: start of the interval.
        end: end of the interval.
        most: approximate number of records in a part; those of one skeleton are never separated.
        beside: number of other molecules, spread over the interval, to be counted with the records.

    Yields:
        Start and end of a part, and its records as a table of `CATALOG_SCHEMA`, possibly empty; together the parts
        cover the interval. Yields nothing if the interval holds no record.
    """
    opened = (_open_table(path).read_all().replace_schema_metadata(None) for path in paths if end > start)
    many = len(paths) > _MOST_MAPPED
    chunks = [_copied(chunk) if many else chunk for table in opened if (chunk := _between(table, start, end)).num_rows]
    count = -(-(sum(map(len, chunks)) + beside) // most) if chunks else 0
    borders = [start + (end - start) * n // count for n in range(count + 1)] if count else []
    for first, last in pairwise(borders):
        yield first, last, pa.concat_tables([CATALOG_SCHEMA.empty_table(), *(_between(c, first, last) for c in chunks)])


def position_of(inchikey: str) -> int:
    """Returns the position of a molecule on the axis, in [0, 2^64)."""
    skeleton = inchikey.partition("-")[0]
    return int.from_bytes(hashlib.blake2b(skeleton.encode(), digest_size=8).digest(), "little")


def _between(table: pa.Table, start: int, end: int) -> pa.Table:
    """Returns the rows of a table, sorted along the axis, with positions in [start, end)."""
    positions = table["position"].to_numpy()
    first = np.searchsorted(positions, np.uint64(start), side="left")
    last = np.searchsorted(positions, np.uint64(end - 1), side="right")
    return table.slice(first, last - first)


def _copied(table: pa.Table) -> pa.Table:
    """Returns the table in memory, so that its file closes."""
    return table.take(pa.array(np.arange(len(table))))


def _catalog_chunk(
    path: Path,
    chunk: Sequence[Record | Refused],
    num_bytes: int,
    source: Input,
    excluded: frozenset[str],
    options: PrepareOptions,
) -> None:
    """Standardizes a chunk and writes it sorted along the axis, after writing the refusals beside it."""
    records = [record for record in chunk if isinstance(record, Record)]
    refused = [record for record in chunk if isinstance(record, Refused)]
    rows: list[tuple[Any, ...]] = []
    changes = Counter[str]()
    num_excluded = 0
    parents = standardize_many([record.structure for record in records], Standardization.from_options(options))
    given = _given(parents, options)
    for number, (record, parent) in enumerate(zip(records, parents, strict=True)):
        if isinstance(parent, Refusal):
            refused.append(Refused(record.id, record.place, parent.reason, parent.message))
        elif parent.inchikey.partition("-")[0] in excluded:
            num_excluded += 1
        else:
            changes.update(parent.changes)
            rows.append(
                (position_of(parent.inchikey), parent.inchikey, parent.smiles, record.id, given.get(number),
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
        input_bytes=num_bytes,
        changes=dict(sorted(changes.items())),
    )
    write_refused(path, refused)
    columns = zip(*rows, strict=True) if rows else [()] * len(CATALOG_SCHEMA)
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, CATALOG_SCHEMA, strict=True)],
        schema=CATALOG_SCHEMA.with_metadata({"counts": json.dumps(asdict(counts))}),
    )
    with write_atomically(path) as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        if source.url.startswith("file://"):  # a server is asked once, after the last chunk
            check_unchanged(source)


def _given(parents: Sequence[Parent | Refusal], options: PrepareOptions) -> dict[int, bytes | None]:
    """Returns the coordinates of the parents that have any, by index; None if a block cannot store them."""
    if options.conformers == "none":
        return {}
    given = {n: p.xyz for n, p in enumerate(parents) if isinstance(p, Parent) and p.xyz is not None}
    return dict(zip(given, conformers_to_bytes(list(given.values())), strict=True))


def _chunk_counts(path: Path) -> ChunkCounts:
    return ChunkCounts(**json.loads(_open_table(path).schema.metadata[b"counts"]))


def _open_table(path: Path) -> pa.RecordBatchFileReader:
    # Memory-mapped, so that only the requested interval of a chunk is read.
    return pa.ipc.open_file(pa.memory_map(str(path)))
