"""Tables with named columns: CSV of any dialect, and Parquet."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import SEEK_END
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from mmsa_shards.errors import ColumnError, PrepareError
from mmsa_shards.options import PrepareOptions
from mmsa_shards.read.record import Place, Record, Refused, smiles_record, text_of, too_long
from mmsa_shards.read.rows import Lines, table_rows

SMILES_COLUMNS = ("smiles", "canonical_smiles", "isomeric_smiles", "can_smiles", "mol", "structure")
ID_COLUMNS = (
    "id",
    "cid",
    "chembl_id",
    "molecule_chembl_id",
    "mol_id",
    "compound_id",
    "zinc_id",
    "name",
    "title",
)


def csv_records(
    batches: Iterable[Sequence[str | None]], file: str, options: PrepareOptions
) -> Iterator[Record | Refused]:
    """Yields records from the rows of a table with a header, delimited by comma, semicolon or tab as the header is."""
    lines = Lines(batches)
    header = next(lines, None) or ""
    delimiter = delimiter_of(header)
    names = next(csv.reader([header], delimiter=delimiter), [])
    smiles_at, id_at = _columns(names, options)
    for number, row in table_rows(lines, delimiter, len(names), smiles_at):
        if row is None:
            yield too_long(Place(file, number))
        elif isinstance(row, str):
            place = Place(file, number)
            yield Refused(place.as_id, place, "syntax", row)
        else:
            width = len(row)
            smiles = row[smiles_at].strip() if smiles_at < width else ""
            name = row[id_at] if id_at is not None and id_at < width else ""
            yield smiles_record(name, smiles, file, number)


def delimiter_of(header: str) -> str:
    """Returns the most frequent of comma, tab and semicolon in the header of a CSV file, ignoring quoted text."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(",\t;", key=bare.count)


def parquet_records(
    stream: BinaryIO, file: str, options: PrepareOptions, progress: Callable[[int], None] | None = None
) -> Iterator[Record | Refused]:
    """Yields records from the rows of a Parquet file; nulls are empty cells, and columns of bytes are decoded as text.

    `progress` is called with the size of the file in proportion to the rows read.

    Raises:
        PrepareError: the file has no Parquet footer.
    """
    num_bytes = stream.seek(0, SEEK_END)
    try:
        table = pq.ParquetFile(stream, pre_buffer=False)  # a thread still reading at exit would abort the program
    except pa.ArrowInvalid as error:
        stream.seek(0)
        if stream.read(4) == b"PAR1":
            raise PrepareError(f"cannot read {file}: it is cut off ({error}): fetch it again") from error
        raise PrepareError(f"cannot read {file}: it is not a Parquet file: rename it to what it is") from error
    names = table.schema_arrow.names
    smiles_at, id_at = _columns(names, options)
    wanted = [names[smiles_at]] + ([] if id_at is None else [names[id_at]])
    number, num_rows = 0, table.metadata.num_rows
    for batch in table.iter_batches(batch_size=8192, columns=wanted, use_threads=False):
        # The first of several columns of one name, as in CSV.
        all_smiles, *others = (_texts(batch[batch.schema.names.index(name)]) for name in wanted)
        all_names = others[0] if others else [""] * len(all_smiles)
        for smiles, name in zip(all_smiles, all_names, strict=True):
            number += 1
            if progress is not None:
                progress(num_bytes * number // num_rows)
            yield smiles_record(name, smiles.strip(), file, number)


def _texts(column: pa.Array) -> list[str]:
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # if a program wrote text in another encoding than UTF-8
        values = column.cast(pa.binary()).to_pylist()
    return ["" if value is None else text_of(value) if isinstance(value, bytes) else str(value) for value in values]


def _columns(names: Sequence[str], options: PrepareOptions) -> tuple[int, int | None]:
    """Returns the indices of the SMILES column and the id column, the latter None if there is none.

    Raises:
        ColumnError: a column is missing; the message goes on from the place of the file.
    """
    smiles_at = _find(names, options.smiles_column, SMILES_COLUMNS)
    id_at = _find(names, options.id_column, ID_COLUMNS)
    for at, option, wanted in (
        (smiles_at, "smiles_column", options.smiles_column or "SMILES"),
        (id_at, "id_column", options.id_column),
    ):
        if at is None and wanted:
            raise ColumnError(
                f"has no {wanted} column, its columns are {', '.join(repr(name[:40]) for name in names)}: "
                f"name one of them with prepare.{option}=..."
            )
    assert smiles_at is not None
    return smiles_at, id_at


def _find(names: Sequence[str], asked: str, usual: Iterable[str]) -> int | None:
    if asked:
        return names.index(asked) if asked in names else None
    normalized = ["_".join(name.lower().split()) for name in names]
    return next((normalized.index(name) for name in usual if name in normalized), None)
