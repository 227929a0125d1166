"""The folder that an export writes: Parquet parts in input order, and a summary that is there once all parts are.

Columns: `id`, `inchikey`, `smiles` (of the standardized parent where ok, as given elsewhere), `embedding`
(fixed_size_list<float16 or float32>[D], null where not ok), `ok`, `reason` (null where ok).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmsa_dist.runtime.files import flush, write_atomically

SUMMARY = "_export.json"  # the underscore makes readers of a whole folder of Parquet pass it by
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
    source: str
    """Digest of what was embedded."""
    dtype: Dtype
    width: int
    rows_per_part: int


@dataclass(frozen=True)
class ExportSummary:
    """What an export did."""

    folder: Path
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


@dataclass(frozen=True)
class EmbeddedRow:
    """One row of the output, but for its vector."""

    id: str
    inchikey: str | None
    smiles: str | None
    reason: str | None
    """None where there is a vector."""


def part_name(number: int) -> str:
    """File name of a part."""
    return f"part-{number:05d}.parquet"


def write_part(
    folder: Path, number: int, rows: Sequence[EmbeddedRow], vectors: NDArray[np.float32], origin: Origin
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
    temporary = folder / f".{part_name(number)}.{os.getpid()}.tmp"
    pq.write_table(table, temporary, compression="zstd")
    flush(temporary)
    temporary.replace(folder / part_name(number))
    flush(folder)


def part_origin(path: Path) -> Origin:
    """The origin of a part.

    Raises:
        ExportError: the file is no part of an export.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return Origin(**json.loads(metadata[b"mmsa_origin"]))
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise ExportError(f"{path} is not a part of an embedding export ({error}); remove it") from error


def write_summary(summary: ExportSummary) -> None:
    """Marks an export as finished."""
    about = dataclasses.asdict(summary) | {"folder": summary.folder.name}
    write_atomically(summary.folder / SUMMARY, json.dumps(about, indent=2) + "\n")


def read_summary(folder: str | os.PathLike[str]) -> ExportSummary:
    """The summary of a finished export.

    Raises:
        ExportError: no finished export is there.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / SUMMARY).read_text())
        return ExportSummary(**about | {"folder": folder, "origin": Origin(**about["origin"])})
    except FileNotFoundError:
        raise ExportError(
            f"{folder} holds no finished embeddings ({SUMMARY} is missing); run `mmsa embed` on it again"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{folder / SUMMARY} cannot be read ({error}); export into another folder") from error


@dataclass(frozen=True)
class Embeddings:
    """The n rows of an export that have a vector."""

    ids: list[str]
    inchikeys: list[str]
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
    paths = [summary.folder / part_name(number) for number in range(summary.parts)]
    for path in paths:
        if not path.exists():
            raise ExportError(f"{folder} lacks {path.name}; remove the folder and run `mmsa embed` again")
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    if table.num_rows != summary.rows:
        raise ExportError(f"{folder} holds {table.num_rows} rows instead of {summary.rows}; export into another folder")
    table = table.filter(table["ok"])
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Embeddings(
        ids=table["id"].to_pylist(),
        inchikeys=table["inchikey"].to_pylist(),
        smiles=table["smiles"].to_pylist(),
        vectors=flat.reshape(-1, summary.origin.width).astype(np.float32),
        summary=summary,
    )
