"""The ledger of what did not become a molecule: one Parquet row per refused record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmsa_shards.atomic import write_atomically
from mmsa_shards.read import Refused

REJECTS_FOLDER = "rejects"

REJECT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        # From 1: the line of SMILES and CSV files, the record of SDF, the row of Parquet.
        pa.field("number", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


def rejects_table(refused: Iterable[Refused]) -> pa.Table:
    """Returns refused records as a table of `REJECT_SCHEMA`."""
    rows = [(r.id, r.place.file, r.place.number, r.reason, r.message) for r in refused]
    columns = zip(*rows, strict=True) if rows else [()] * len(REJECT_SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, REJECT_SCHEMA, strict=True)], schema=REJECT_SCHEMA)


def write_refused(beside: Path, refused: Iterable[Refused]) -> None:
    """Writes what a step refused beside the file that it makes, under the suffix ``.rejects``."""
    with (
        write_atomically(beside.with_suffix(".rejects")) as file,
        pa.ipc.new_file(file, REJECT_SCHEMA) as writer,
    ):
        writer.write_table(rejects_table(refused))


def read_refused(beside: Path) -> pa.Table:
    """Reads what `write_refused` wrote as a table of `REJECT_SCHEMA`."""
    return pa.ipc.open_file(pa.memory_map(str(beside.with_suffix(".rejects")))).read_all()


def write_rejects(folder: Path, tables: Iterable[pa.Table]) -> Counter[str]:
    """Writes ``rejects/part-00000.parquet`` below `folder`, sorted by file and number.

    Returns:
        How many records were refused for each reason.
    """
    table = pa.concat_tables([REJECT_SCHEMA.empty_table(), *tables])
    table = table.sort_by([("file", "ascending"), ("number", "ascending"), ("id", "ascending")])
    (folder / REJECTS_FOLDER).mkdir(exist_ok=True)
    with write_atomically(folder / REJECTS_FOLDER / "part-00000.parquet") as file:
        pq.write_table(table, file, compression="zstd")
    return Counter({c["values"]: c["counts"] for c in pc.value_counts(table["reason"]).to_pylist()})


def read_rejects(folder: str | Path) -> pa.Table:
    """Reads the ledger of a prepared folder, a path or a URL that fsspec knows, as a table of `REJECT_SCHEMA`."""
    system, path = fsspec.core.url_to_fs(f"{str(folder).rstrip('/')}/{REJECTS_FOLDER}")
    return pq.read_table(path, filesystem=system, schema=REJECT_SCHEMA)
