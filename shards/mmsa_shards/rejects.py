"""The table of refused records: one Parquet row for each record that did not become a molecule.

There may be as many refusals as records, so nothing here except `read_rejects` holds more than a few thousand of them
in memory. SQLite sorts them in a file.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from mmsa_shards.atomic import write_atomically
from mmsa_shards.places import file_in, opened
from mmsa_shards.read import Refused

REJECTS_NAME = "rejects/part-00000.parquet"

REJECT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        # Counted from 1: the line in a SMILES or CSV file, the record in an SDF file, the row in a Parquet file.
        pa.field("number", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)

_ROWS_AT_A_TIME = 4096
_ROWS_OF_A_GROUP = 1 << 14  # of a row group of the Parquet file, which holds rows of one input only


def rejects_table(refused: Iterable[Refused]) -> pa.Table:
    """Returns refused records as a table of `REJECT_SCHEMA`."""
    return _table([(r.id, r.place.file, r.place.number, r.reason, r.message) for r in refused])


def write_refused(beside: Path, refused: Iterable[Refused]) -> None:
    """Writes the records that a step refused beside the file that it makes, with the suffix ``.rejects``."""
    with (
        write_atomically(beside.with_suffix(".rejects")) as file,
        pa.ipc.new_file(file, REJECT_SCHEMA) as writer,
    ):
        writer.write_table(rejects_table(refused))


def read_refused(beside: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """Yields what `write_refused` wrote beside some files, as batches of `REJECT_SCHEMA`."""
    for path in beside:
        yield from pa.ipc.open_file(pa.memory_map(str(path.with_suffix(".rejects")))).read_all().to_batches()


def write_rejects(path: Path, refused: Iterable[pa.RecordBatch]) -> Counter[str]:
    """Writes the table, sorted by file and number.

    Args:
        path: of the Parquet file.
        refused: refusals of `REJECT_SCHEMA` in any order.

    Returns:
        How many records were refused for each reason.
    """
    reasons = Counter[str]()
    path.parent.mkdir(exist_ok=True)
    with write_atomically(path) as file, pq.ParquetWriter(file, REJECT_SCHEMA, compression="zstd") as writer:
        for _, rows in groupby(_sorted(refused, path.parent), key=itemgetter(1)):
            while len(table := _table(list(islice(rows, _ROWS_OF_A_GROUP)))):
                reasons.update(table["reason"].to_pylist())
                writer.write_table(table)
    return reasons


def stored_rejects(folder: str | Path) -> Iterator[pa.RecordBatch]:
    """Yields the table of a prepared folder, which may be any URL that fsspec supports, in batches."""
    with opened(file_in(folder, REJECTS_NAME)) as file:
        rejects = pq.ParquetFile(file, pre_buffer=False)  # for the reason given in `read_rejects`
        for batch in rejects.iter_batches(_ROWS_AT_A_TIME, use_threads=False):
            yield batch.cast(REJECT_SCHEMA)


def read_rejects(folder: str | Path) -> pa.Table:
    """Reads the table of a prepared folder, which may be any URL that fsspec supports, as `REJECT_SCHEMA`."""
    with opened(file_in(folder, REJECTS_NAME)) as file:
        content = pa.BufferReader(file.read())
    # Not `pq.read_table`, which starts threads in any case: a thread that still waits when the program ends aborts it.
    return pq.ParquetFile(content, pre_buffer=False).read(use_threads=False).cast(REJECT_SCHEMA)


def _table(rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(REJECT_SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, REJECT_SCHEMA, strict=True)], schema=REJECT_SCHEMA)


def _sorted(refused: Iterable[pa.RecordBatch], folder: Path) -> Iterator[tuple[Any, ...]]:
    """Yields rows ordered by file and number, from a database in a temporary file of `folder`."""
    path = folder / f".{secrets.token_hex(8)}.tmp"  # if this run is killed, the next one removes it
    try:
        # No other process opens it and nothing in it must last, so it needs no journal, and no locks, which some file
        # systems lack.
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?vfs=unix-none", uri=True)) as database:
            database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
            # The table is its own index; the count distinguishes equal rows.
            key = "file, number, id, reason, message, count"
            database.execute(
                f"CREATE TABLE refused (id, file, number, reason, message, count, PRIMARY KEY ({key})) WITHOUT ROWID"
            )
            count = 0
            for batch in refused:
                for start in range(0, len(batch), _ROWS_AT_A_TIME):
                    piece = batch.slice(start, _ROWS_AT_A_TIME)
                    columns = [column.to_pylist() for column in piece.columns]
                    rows = zip(*columns, range(count, count + len(piece)), strict=True)
                    database.executemany("INSERT INTO refused VALUES (?, ?, ?, ?, ?, ?)", rows)
                    count += len(piece)
            yield from database.execute(f"SELECT id, file, number, reason, message FROM refused ORDER BY {key}")
    except sqlite3.Error as error:  # a full disk, mostly
        raise OSError(f"cannot sort the refused records in {folder} ({error})") from error
    finally:
        path.unlink(missing_ok=True)
