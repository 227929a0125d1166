"""The folder that an export writes: Parquet parts in input order, and a summary that is there once all parts are.

    part-00000.parquet ...   rows
    _vectors.npy             on request: all vectors as one array (`mmsa_dist.embed.npy`)
    _export.json             what was done

Columns: `id`, `inchikey`, `smiles` (where ok canonical, of the standardized parent if molecules were standardized;
elsewhere as given, null of a molfile), `embedding` (fixed_size_list<float16 or float32>[D], null where not ok), `ok`,
`reason` (null where ok).
`inchikey` of SMILES is null where it was not asked for, or InChI has none; shards always have it.
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

SUMMARY = "_export.json"  # the underscore makes readers of a whole folder of Parquet pass it by
Reasons = Counter[str | None]
"""Rows by the reason why they have no vector; None for those that have one."""
Dtype = Literal["float16", "float32"]


class ExportError(ValueError):
    """A folder of embeddings that cannot be written or read; the message says why and what to do."""


@dataclass(frozen=True)
class Origin:
    """What the vectors of a folder are: equal origins, equal rows."""

    model: str
    """Digest of the model."""
    view: str
    conformers: str
    pictures: bool
    standardize: bool
    """Whether SMILES were standardized; what shards hold is."""
    inchikeys: bool
    """Whether those of SMILES were made."""
    source: str
    """Digest of what was embedded."""
    read_by: str
    """What made molecules of it: other versions may make others."""
    dtype: Dtype
    width: int
    rows_per_part: int


@dataclass(frozen=True)
class ExportSummary:
    """What an export did."""

    folder: str
    """Path or URL."""
    rows: int
    """Input rows, each of which has a row in the output."""
    ok: int
    """Rows that have a vector."""
    reasons: dict[str, int]
    """Rows that have none, by reason."""
    parts: int
    reused_parts: int
    """Parts that an earlier, interrupted export had already written."""
    origin: Origin
    messages: dict[str, str] = field(default_factory=dict)
    """By reason the first message, of the parts that this export made itself."""


@dataclass(frozen=True)
class EmbeddedRow:
    """One row of the output, but for its vector."""

    id: str
    inchikey: str | None
    smiles: str | None
    reason: str | None
    """None where there is a vector."""
    message: str = ""
    """A sentence on `reason`, which parts do not keep."""


def part_name(number: int) -> str:
    """File name of a part."""
    return f"part-{number:05d}.parquet"


def part_number(name: str) -> int | None:
    """The number of the part that has this file name; None where it is none."""
    found = re.fullmatch(r"part-(\d{5,})\.parquet", name)
    return None if found is None else int(found[1])


def write_part(
    folder: Folder, number: int, rows: Sequence[EmbeddedRow], vectors: NDArray[np.float32], origin: Origin
) -> None:
    """Writes one part, which appears whole or not at all.

    Args:
        folder: of the export.
        number: of the part, from 0.
        rows: n rows.
        vectors: (n, D); what stands in rows with a reason is not kept.
        origin: kept in the file's metadata.

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
    ).replace_schema_metadata({"mmsa_origin": json.dumps(dataclasses.asdict(origin))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.write(part_name(number), sink.getvalue().to_pybytes())


def read_part(folder: Folder, number: int) -> tuple[Origin, Reasons]:
    """The origin of a part, and what became of its rows; vectors are not read.

    Raises:
        ExportError: the file is no part of an export.
    """
    url = f"{folder.url}/{part_name(number)}"
    try:
        with fsspec.open(url, "rb") as stream:
            file = pq.ParquetFile(stream, pre_buffer=False)  # see `part_table`
            origin = _origin(json.loads((file.schema_arrow.metadata or {})[b"mmsa_origin"]))
            reasons = pc.value_counts(file.read(columns=["reason"], use_threads=False)["reason"].combine_chunks())
            return origin, Counter({item["values"]: item["counts"] for item in reasons.to_pylist()})
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise ExportError(f"{url} is not a part of an embedding export ({error}); remove it") from error


def _origin(about: dict[str, Any]) -> Origin:
    """Reads an origin; those of early exports do not say what read their molecules."""
    return Origin(**{"read_by": "", **about})


def part_table(folder: Folder, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a part, or some of its columns.

    Raises:
        ExportError: it is not there.
    """
    content = folder.read(part_name(number))
    if content is None:
        raise ExportError(f"{folder.url} lacks {part_name(number)}; run `mmsa embed` on it again")
    # Not `pq.read_table`: a thread of its scan may let go of the bytes when the program is ending, which aborts it.
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(columns=columns, use_threads=False)


def vectors_of(table: pa.Table, width: int) -> NDArray[np.float16] | NDArray[np.float32]:
    """The (n, D) vectors of a part, in its dtype; what stands in rows that have none means nothing."""
    column = table["embedding"].combine_chunks()
    # `values` and not `flatten`, which leaves out the rows that are null.
    flat = column.values.slice(column.offset * width, len(column) * width)
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width)


def write_summary(summary: ExportSummary) -> None:
    """Marks an export as finished."""
    about = dataclasses.asdict(summary) | {"folder": summary.folder.rpartition("/")[2]}
    Folder(summary.folder).write(SUMMARY, (json.dumps(about, indent=2) + "\n").encode())


def read_summary(folder: str | os.PathLike[str]) -> ExportSummary:
    """The summary of a finished export.

    Raises:
        ExportError: no finished export is there.
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
class Embeddings:
    """The n rows of an export that have a vector."""

    ids: list[str]
    inchikeys: list[str | None]
    smiles: list[str]
    vectors: NDArray[np.float32]
    """(n, D)."""
    summary: ExportSummary


def read_embeddings(folder: str | os.PathLike[str]) -> Embeddings:
    """Reads the rows of a finished export that have a vector, in input order.

    Raises:
        ExportError: no finished export is there, or a part is missing.
    """
    summary = read_summary(folder)
    place = Folder(folder)
    table = pa.concat_tables(part_table(place, number) for number in range(summary.parts))
    if table.num_rows != summary.rows:
        raise ExportError(f"{folder} holds {table.num_rows} rows instead of {summary.rows}; export into another folder")
    table = table.filter(table["ok"])
    return Embeddings(
        ids=table["id"].to_pylist(),
        inchikeys=table["inchikey"].to_pylist(),
        smiles=table["smiles"].to_pylist(),
        vectors=vectors_of(table, summary.origin.width).astype(np.float32),
        summary=summary,
    )
