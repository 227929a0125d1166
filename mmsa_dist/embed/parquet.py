"""The folder that an export writes: Parquet parts in input order, and a summary once all parts exist.

    part-00000.parquet ...   rows
    _vectors.npy             on request: all vectors as one array (`mmsa_dist.embed.npy`)
    _export.json             summary

Columns: `id`, `inchikey`, `smiles` (where ok canonical, of the standardized parent if molecules were standardized;
otherwise as given, null for a molfile), `embedding` (fixed_size_list<float16 or float32>[D], null where not ok), `ok`,
`reason` (null where ok).
`inchikey` of SMILES is null if it was not requested or InChI gives none; shards always have it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmsa_shards.folder import Folder
from mmsa_shards.read import EXPORT_KEY

SUMMARY = "_export.json"  # Parquet dataset readers skip names with an underscore
Reasons = Counter[str | None]
"""Number of rows per reason for a missing vector; None counts rows with one."""
Dtype = Literal["float16", "float32"]


class ExportError(ValueError):
    """A folder of embeddings cannot be written or read; the message says why and what to do."""


@dataclass(frozen=True)
class Origin:
    """Everything that determines the rows of a folder: equal origins give equal rows."""

    model: str
    """Digest of the model."""
    view: str
    conformers: str
    pictures: bool
    standardize: bool
    """Whether molecules are standardized parents; those of shards are, unless all steps were off in preparation."""
    inchikeys: bool
    """Whether InChIKeys of SMILES were computed."""
    source: str
    """Digest of the input."""
    read_by: str
    """Versions of the libraries that read the input; other versions may give other molecules."""
    dtype: Dtype
    width: int
    rows_per_part: int


@dataclass(frozen=True)
class ExportSummary:
    """Summary of an export."""

    folder: str
    """Path or URL."""
    rows: int
    """Input rows; each has a row in the output."""
    ok: int
    """Rows with a vector."""
    reasons: dict[str, int]
    """Rows without one, by reason."""
    parts: int
    reused_parts: int
    """Parts that an earlier, interrupted export had already written."""
    origin: Origin
    messages: dict[str, str] = field(default_factory=dict)
    """First message for each reason, from the parts that this run made."""


@dataclass(frozen=True)
class EmbeddedRow:
    """One row of the output, without its vector."""

    id: str
    inchikey: str | None
    smiles: str | None
    reason: str | None
    """None if there is a vector."""
    message: str = ""
    """Explains `reason`; not stored in parts."""


def part_name(number: int) -> str:
    """Returns the file name of a part."""
    return f"part-{number:05d}.parquet"


def part_number(name: str) -> int | None:
    """Returns the number of the part with this file name; None if `name` is not a part."""
    found = re.fullmatch(r"part-(\d{5,})\.parquet", name)
    return None if found is None else int(found[1])


def write_part(
    folder: Folder, number: int, rows: Sequence[EmbeddedRow], vectors: NDArray[np.float32], origin: Origin
) -> None:
    """Writes one part atomically.

    Args:
        folder: of the export.
        number: of the part, from 0.
        rows: n rows.
        vectors: (n, D); rows with a reason are written as null.
        origin: stored in the file's metadata.

    Raises:
        ExportError: a value does not fit into float16.
    """
    missing = np.array([row.reason is not None for row in rows], dtype=bool)
    values = np.where(missing[:, None], np.float32(0), vectors)
    if origin.dtype == "float16" and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise ExportError("a vector holds numbers too large for float16; export with dtype float32")
    flat = pa.array(values.astype(origin.dtype).reshape(-1))
    table = pa.table(
        {
            "id": pa.array([row.id for row in rows], pa.string()),
            "inchikey": pa.array([row.inchikey for row in rows], pa.string()),
            "smiles": pa.array([row.smiles for row in rows], pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, origin.width, mask=pa.array(missing)),
            "ok": pa.array(~missing),
            "reason": pa.array([row.reason for row in rows], pa.string()),
        }
    ).replace_schema_metadata({EXPORT_KEY: json.dumps(dataclasses.asdict(origin))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.write(part_name(number), sink.getvalue().to_pybytes())


def read_part(folder: Folder, number: int) -> tuple[Origin, Reasons]:
    """Returns origin and reason counts of a part, without reading vectors.

    Raises:
        ExportError: the file is not part of an export.
    """
    url = f"{folder.url}/{part_name(number)}"
    try:
        with fsspec.open(url, "rb") as stream:
            file = pq.ParquetFile(stream, pre_buffer=False)  # see `part_table`
            origin = _origin(json.loads((file.schema_arrow.metadata or {})[EXPORT_KEY]))
            reasons = pc.value_counts(file.read(columns=["reason"], use_threads=False)["reason"].combine_chunks())
            return origin, Counter({item["values"]: item["counts"] for item in reasons.to_pylist()})
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise ExportError(f"{url} is not a part of an embedding export ({error}); remove it") from error


def _origin(about: dict[str, Any]) -> Origin:
    """Reads an origin; early exports lack `read_by`."""
    return Origin(**{"read_by": "", **about})


def part_table(folder: Folder, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a part, or some of its columns.

    Raises:
        ExportError: the part is missing or damaged.
    """
    content = folder.read(part_name(number))
    if content is None:
        raise ExportError(f"{folder.url} lacks {part_name(number)}; run `mmsa embed` on it again")
    # Not `pq.read_table`: a scan thread may release the bytes during interpreter shutdown, which aborts the process.
    try:
        return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ExportError(
            f"{folder.url}/{part_name(number)} is damaged ({str(error).strip()}); remove it and run the same "
            "`mmsa embed` again, which makes only this part"
        ) from error


def vectors_of(table: pa.Table, width: int) -> NDArray[np.float16] | NDArray[np.float32]:
    """Returns the (n, D) vectors of a part in its dtype; rows without a vector hold arbitrary values."""
    column = table["embedding"].combine_chunks()
    # `values`, because `flatten` omits null rows.
    flat = column.values.slice(column.offset * width, len(column) * width)
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width)


def write_summary(summary: ExportSummary) -> None:
    """Marks an export as finished."""
    about = dataclasses.asdict(summary) | {"folder": summary.folder.rpartition("/")[2]}
    Folder(summary.folder).write(SUMMARY, (json.dumps(about, indent=2) + "\n").encode())


def read_summary(folder: str | os.PathLike[str]) -> ExportSummary:
    """Reads the summary of a finished export.

    Raises:
        ExportError: `folder` holds no finished export.
    """
    place = Folder(folder)
    try:
        content = place.read(SUMMARY)
        if content is None:
            raise ExportError(
                f"{place.url} holds no finished embeddings ({SUMMARY} is missing); run `mmsa embed` on it again"
            )
        about = json.loads(content)
        return ExportSummary(**about | {"folder": place.url, "origin": _origin(about["origin"])})
    except ExportError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{place.url}/{SUMMARY} cannot be read ({error}); export into another folder") from error


@dataclass(frozen=True)
class Rows:
    """The n rows of an export that have a vector, without it."""

    ids: list[str]
    inchikeys: list[str | None]
    smiles: list[str]
    summary: ExportSummary


@dataclass(frozen=True)
class Embeddings:
    """The n rows of an export that have a vector."""

    ids: list[str]
    inchikeys: list[str | None]
    smiles: list[str]
    vectors: NDArray[np.float32]
    """(n, D)."""
    summary: ExportSummary

    @property
    def rows(self) -> Rows:
        """These rows without their vectors."""
        return Rows(self.ids, self.inchikeys, self.smiles, self.summary)


def read_embeddings(folder: str | os.PathLike[str]) -> Embeddings:
    """Reads the rows of a finished export that have a vector, in input order.

    Raises:
        ExportError: `folder` holds no finished export, or a part is missing or damaged.
    """
    summary, table = _rows_with_a_vector(folder, ["embedding"])
    return Embeddings(
        *_names(table), vectors=vectors_of(table, summary.origin.width).astype(np.float32), summary=summary
    )


def read_rows(folder: str | os.PathLike[str]) -> Rows:
    """Reads what `read_embeddings` does, but no vectors; the errors are the same."""
    summary, table = _rows_with_a_vector(folder)
    return Rows(*_names(table), summary=summary)


def _rows_with_a_vector(folder: str | os.PathLike[str], more: Sequence[str] = ()) -> tuple[ExportSummary, pa.Table]:
    summary = read_summary(folder)
    place, columns = Folder(folder), ["id", "inchikey", "smiles", "ok", *more]
    table = pa.concat_tables(part_table(place, number, columns) for number in range(summary.parts))
    if table.num_rows != summary.rows:
        raise ExportError(f"{folder} holds {table.num_rows} rows instead of {summary.rows}; export into another folder")
    return summary, table.filter(table["ok"])


def _names(table: pa.Table) -> tuple[list[str], list[str | None], list[str]]:
    return table["id"].to_pylist(), table["inchikey"].to_pylist(), table["smiles"].to_pylist()
