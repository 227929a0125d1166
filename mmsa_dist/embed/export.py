"""From files or shards to Parquet: a row for every input row, in input order, and a restart that goes on.

The input is cut into parts of equal numbers of rows. A part is written whole or not at all, so what an interrupted
export left behind is a prefix of the output; the next run checks that it came from the same model and input, and
goes on after it. Where a part was lost, it goes on from there.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.parquet import (
    SUMMARY,
    Dtype,
    ExportError,
    ExportSummary,
    Origin,
    part_name,
    part_origin,
    read_summary,
    write_part,
    write_summary,
)
from mmsa_dist.embed.source import Row, open_source
from mmsa_shards.options import PrepareOptions

Progress = Callable[[int, int | None], None]
"""Called with the rows done and the rows in all (None where that is not known)."""

_REPORT_EVERY = 256  # rows


def export_embeddings(
    embedder: Embedder,
    source: str | os.PathLike[str] | Sequence[str],
    out: str | os.PathLike[str],
    *,
    dtype: Dtype = "float16",
    rows_per_part: int = 16384,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> ExportSummary:
    """Embeds all molecules of `source` into the folder `out`.

    Args:
        embedder: gives view, modalities and device; its `on_error` is not asked, for every row is kept.
        source: a folder of shards, or one or several files that `mmsa prepare` reads.
        out: folder of the result; made if it is not there. An unfinished export of the same vectors is finished,
            one that lost parts is mended, a finished one is left as it is.
        dtype: of the vectors in Parquet.
        rows_per_part: rows in one file.
        options: how files are read (`smiles_column`, `id_column`, `allow_truncated`); None takes the defaults.
        progress: called before the first row and after every few.

    Raises:
        ExportError: `out` holds something else, or the vectors do not fit `dtype`.
        ValueError: `source` cannot be read (the message says why).
    """
    if rows_per_part < 1:
        raise ValueError(f"rows_per_part={rows_per_part} must be 1 or more")
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(get_args(Dtype))}")
    folder = Path(out)
    rows = open_source(source, embedder, options)
    origin = Origin(
        model=embedder.digest,
        view=embedder.view_,
        conformers=embedder.conformers,
        pictures=embedder.pictures,
        source=rows.digest,
        dtype=dtype,
        width=embedder.width_,
        rows_per_part=rows_per_part,
    )
    done = _parts_done(folder, origin)
    if (folder / SUMMARY).exists():
        finished = read_summary(folder)
        if done == finished.parts:
            return finished
        (folder / SUMMARY).unlink()  # parts were lost since: it is unfinished again
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[str | None] = Counter()
    for number in range(done):
        counts += _reasons(folder / part_name(number))
    parts = done
    start = done * rows_per_part
    embedded = _reported(rows.rows(start), start, rows.total, progress or (lambda done, total: None))
    while part := list(islice(embedded, rows_per_part)):
        batch = [row for row, _ in part]
        write_part(folder, parts, batch, np.stack([vector for _, vector in part]), origin)
        parts += 1
        counts += Counter(row.reason for row in batch)
    if counts.total() == 0:
        raise ExportError(f"{source} holds no records; nothing was embedded")
    summary = ExportSummary(
        folder=folder,
        rows=counts.total(),
        ok=counts[None],
        reasons={reason: n for reason, n in counts.most_common() if reason is not None},
        parts=parts,
        reused_parts=done,
        origin=origin,
    )
    write_summary(summary)
    return summary


def _reported(rows: Iterator[Row], done: int, total: int | None, progress: Progress) -> Iterator[Row]:
    """Passes rows on and tells of them, from before the first until after the last."""
    progress(done, total)
    for row in rows:
        yield row
        done += 1
        if done % _REPORT_EVERY == 0:
            progress(done, total)
    progress(done, done)


def _parts_done(folder: Path, origin: Origin) -> int:
    """Number of parts, counted from the first up to a missing one, that are there already.

    Raises:
        ExportError: `folder` holds other things, or parts of other vectors.
    """
    if not folder.exists():
        return 0
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file; name a folder for the embeddings")
    for leftover in folder.glob(".part-*.tmp"):  # of a process that was killed
        leftover.unlink()
    parts = {path.name for path in folder.iterdir()} - {SUMMARY}
    if strange := sorted(name for name in parts if not re.fullmatch(r"part-\d{5,}\.parquet", name)):
        raise ExportError(f"{folder} holds other files than embeddings ({strange[0]}, ...); choose another folder")
    for name in sorted(parts):
        found = part_origin(folder / name)
        if found != origin:
            field = next(key for key in vars(origin) if getattr(found, key) != getattr(origin, key))
            raise ExportError(
                f"{folder} holds embeddings of another origin ({field} was {getattr(found, field)!r}, is now "
                f"{getattr(origin, field)!r}); choose another folder or remove this one"
            )
    done = next(number for number in count() if part_name(number) not in parts)
    if done and not (folder / SUMMARY).exists():
        # Only a full part can be followed by another: a shorter one, which is the last, is written again.
        last = pq.read_metadata(folder / part_name(done - 1)).num_rows
        return done if last == origin.rows_per_part else done - 1
    return done


def _reasons(path: Path) -> Counter[str | None]:
    counts = pc.value_counts(pq.read_table(path, columns=["reason"])["reason"].combine_chunks())
    return Counter({item["values"]: item["counts"] for item in counts.to_pylist()})
