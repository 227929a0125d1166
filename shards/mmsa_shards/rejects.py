"""The ledger of what did not become a molecule: one Parquet row per refused record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmsa_shards.atomic import write_atomically
from mmsa_shards.places import opened
from mmsa_shards.read import Refused

REJECTS_NAME = "rejects/part-00000.parquet"

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


def read_refused(beside: Iterable[Path]) -> pa.Table:
    """Reads what `write_refused` wrote beside files as one table of `REJECT_SCHEMA`."""
    tables = [pa.ipc.open_file(pa.memory_map(str(path.with_suffix(".rejects")))).read_all() for path in beside]
    return pa.concat_tables([REJECT_SCHEMA.empty_table(), *tables])


def write_rejects(path: Path, chapters: Mapping[str, Iterable[Path]], others: pa.Table) -> Counter[str]:
    """Writes the ledger, sorted by file and number, holding the rows of one file at a time.

    Args:
        path: of the Parquet file.
        chapters: by the name of an input, the files beside which the refusals of its records stand.
        others: refusals of `REJECT_SCHEMA` from anywhere else.

    Returns:
        How many records were refused for each reason.
    """
    reasons = Counter[str]()
    path.parent.mkdir(exist_ok=True)
    with write_atomically(path) as file, pq.ParquetWriter(file, REJECT_SCHEMA, compression="zstd") as writer:
        for name in sorted({*chapters, *others["file"].to_pylist()}):
            table = pa.concat_tables([read_refused(chapters.get(name, ())), others.filter(pc.field("file") == name)])
            table = table.sort_by([("number", "ascending"), ("id", "ascending")])
            reasons.update({c["values"]: c["counts"] for c in pc.value_counts(table["reason"]).to_pylist()})
            if len(table):
                writer.write_table(table)
    return reasons


def read_rejects(folder: str | Path) -> pa.Table:
    """Reads the ledger of a prepared folder, which may be any URL that fsspec knows, as `REJECT_SCHEMA`."""
    with opened(f"{str(folder).rstrip('/')}/{REJECTS_NAME}") as file:
        content = pa.BufferReader(file.read())
    # Not `pq.read_table`, which starts threads whatever it is told: one that still waits when the program ends takes it
    # down with an abort.
    return pq.ParquetFile(content, pre_buffer=False).read(use_threads=False).cast(REJECT_SCHEMA)
