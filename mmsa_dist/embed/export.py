"""From files or shards to Parquet: one row per input row, in input order, resumable.

The input is cut into pieces with equal numbers of rows, and each output part depends on one piece only. A part is
written atomically, so an interrupted export leaves complete parts behind; the next run checks that they come from
the same model and input, and makes the missing ones.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, get_args

from mmsa_dist.embed.embedder import Embedder, refuse_given_conformers
from mmsa_dist.embed.npy import UNFINISHED, VECTORS, write_npy
from mmsa_dist.embed.parquet import (
    SUMMARY,
    Dtype,
    ExportError,
    ExportSummary,
    Origin,
    Reasons,
    part_name,
    part_number,
    read_part,
    read_summary,
    write_summary,
)
from mmsa_dist.embed.part import MadePart, make_part
from mmsa_dist.embed.source import Piece, ShardRows, Source, open_source
from mmsa_shards.folder import Folder
from mmsa_shards.lock import locked
from mmsa_shards.options import PrepareOptions

Format = Literal["parquet", "npy"]

_LOCK = ".mmsa-embed.lock"
_LOG = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the rows done and the total, which is an estimate for files until all are read."""


def export_embeddings(
    embedder: Embedder,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    dtype: Dtype = "float16",
    format: Format = "parquet",
    rows_per_part: int = 16384,
    options: PrepareOptions | None = None,
    parallel: int = 1,
    progress: Progress | None = None,
) -> ExportSummary:
    """Embeds all molecules of `source` into the folder `out`.

    Args:
        embedder: sets view, modalities and device; its `on_error` is ignored, because every row is kept.
        source: a folder of shards, or one or more files that `mmsa prepare` reads, folders of them or patterns with
            ``*``; paths or URLs that fsspec supports. ``-`` reads SMILES from standard input.
        out: output folder, a path or URL; created if missing. An unfinished export of the same vectors is completed,
            lost parts are made again, a finished export is left unchanged.
        dtype: of the vectors.
        format: ``npy`` also writes the vectors as one array (`mmsa_dist.embed.npy`).
        rows_per_part: rows per file.
        options: how files are read (`smiles_column`, `id_column`, `allow_truncated`); None takes the defaults.
        parallel: parts at a time; more than one run in Ray, 0 takes as many as the cluster has room for. Vectors do
            not depend on it.
        progress: called before the first row and every few rows.

    Raises:
        ExportError: `out` holds something else, another export is writing there, or the vectors do not fit `dtype`.
        ValueError: `source` cannot be read (the message says why); or `embedder` takes given conformers, and `source`
            is no folder of shards; or it does not standardize, and `source` is shards of standardized molecules.
    """
    if rows_per_part < 1:
        raise ValueError(f"rows_per_part={rows_per_part} must be 1 or more")
    for name, value, allowed in (("dtype", dtype, get_args(Dtype)), ("format", format, get_args(Format))):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")
    make = _one_by_one
    if parallel != 1:
        from mmsa_dist.embed.side_by_side import side_by_side  # here, because Ray is optional

        make = partial(side_by_side, parallel)
    embedder.fit()  # validates its options before anything is written
    folder = Folder(out)
    rows = open_source(source, options, out)
    if isinstance(rows, ShardRows):
        _check_standardization(embedder, rows.options, source)
    else:
        refuse_given_conformers(embedder.conformers, source)
    origin = Origin(
        model=embedder.digest,
        view=embedder.view_,
        conformers=embedder.conformers,
        pictures=embedder.pictures,
        standardize=embedder.standardize,
        inchikeys=embedder.inchikeys,
        source=rows.digest,
        read_by=rows.read_by,
        dtype=dtype,
        width=embedder.width_,
        rows_per_part=rows_per_part,
    )
    _make(folder)
    with _alone_in(folder):
        there = _parts_there(folder, origin)
        summary = _finished(folder, there)
        if summary is None:
            ledger = _Ledger(rows, progress or (lambda done, total: None))
            missing = ledger.missing(rows.pieces(rows_per_part), there)
            for reasons, messages in make(embedder, origin, folder.url, missing, ledger.tell):
                ledger.reasons += reasons
                ledger.messages = messages | ledger.messages
            if not ledger.parts:
                raise ExportError(f"{source} holds no records; nothing was embedded")
            summary = _summary(folder, origin, ledger)
            write_summary(summary)
            ledger.progress(summary.rows, summary.rows)
        if format == "npy":
            write_npy(summary)
        return summary


def _check_standardization(embedder: Embedder, prepared: Mapping[str, Any], source: object) -> None:
    """Checks that shards hold molecules such as `embedder` makes of SMILES; `prepared` are their options.

    Raises:
        ValueError: molecules are to be taken as given, and those of the shards were standardized.
    """
    model = embedder.pretrained.inference.standardization
    wanted = asdict(model if embedder.standardize else model.as_drawn())
    del wanted["max_atoms"]  # it leaves molecules out and changes none
    other = {name: prepared[name] for name, value in wanted.items() if prepared.get(name, value) != value}
    if not embedder.standardize and (other or not wanted.keys() <= prepared.keys()):
        raise ValueError(
            f"standardize=False takes molecules as given, and those of {source} were standardized when they were "
            f"prepared ({_named(other) or 'as always, unless their options say otherwise'}); leave "
            "embed.standardize=false out, or embed the files that the shards were made of"
        )
    if other:
        _LOG.warning(
            "%s was prepared with %s, the shards of the model with %s: vectors are of other molecules than those of "
            "SMILES, queries of mmsa search included",
            source,
            _named(other),
            _named({name: wanted[name] for name in other}),
        )


def _named(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _make(folder: Folder) -> None:
    if folder.path is None:
        return
    if folder.path.exists() and not folder.path.is_dir():
        raise ExportError(f"{folder.path} is a file; name a folder for the embeddings")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"the folder {folder.path} cannot be made ({error.strerror}); name one where you may write"
        ) from error


def _alone_in(folder: Folder) -> AbstractContextManager[None]:
    """Returns an exclusive lock on a local folder; a URL cannot be locked."""
    if folder.path is None or not os.access(folder.path, os.W_OK):  # a finished export may be read-only
        return nullcontext()
    refusal = ExportError(f"another export is at work in {folder.path}: wait for its end, or name another folder")
    return locked(folder.path / _LOCK, refusal)


@dataclass
class _Ledger:
    """Outcome of the pieces seen so far."""

    source: Source
    progress: Progress
    parts: int = 0
    reused_parts: int = 0
    reasons: Reasons = field(default_factory=Counter)
    """Rows of finished parts, by reason."""
    messages: dict[str, str] = field(default_factory=dict)
    """First message for each reason, from parts made in this run."""

    def missing(self, pieces: Iterable[Piece], there: Mapping[int, Reasons]) -> Iterator[tuple[int, Piece]]:
        """Yields number and piece for each piece without a part."""
        for number, piece in enumerate(pieces):
            self.parts += 1
            if number in there and there[number].total() == len(piece):
                self.reused_parts += 1
                self.reasons += there[number]
            else:
                self.tell()
                yield number, piece

    def tell(self, inside: int = 0) -> None:
        """Reports how many rows are done, `inside` of them in an unfinished part."""
        self.progress(self.reasons.total() + inside, self.source.total)


def _one_by_one(
    embedder: Embedder, origin: Origin, url: str, pieces: Iterable[tuple[int, Piece]], tell: Callable[[int], None]
) -> Iterator[MadePart]:
    """Makes parts in this process; yields the outcome of each."""
    for number, piece in pieces:
        yield make_part(embedder, origin, url, number, piece, tell)


def _parts_there(folder: Folder, origin: Origin) -> dict[int, Reasons]:
    """Returns the reason counts of the parts already present, by part number.

    Raises:
        ExportError: `folder` holds other files, or parts of another origin.
    """
    there = {}
    for name in folder.names():
        number = part_number(name)
        if number is None and name.startswith(("_", ".")):  # bookkeeping files of the folder, not parts
            continue
        if number is None:
            raise ExportError(f"{folder.url} holds other files than embeddings ({name}, ...); choose another folder")
        found, there[number] = read_part(folder, number)
        if found != origin:
            wrong = next(key for key in vars(origin) if getattr(found, key) != getattr(origin, key))
            raise ExportError(
                f"{folder.url} holds embeddings of another origin ({wrong} was {getattr(found, wrong)!r}, is now "
                f"{getattr(origin, wrong)!r}); choose another folder or remove this one"
            )
    if folder.path is not None:  # leftovers of a killed process
        for leftover in folder.path.glob(".part-*.tmp"):
            leftover.unlink()
        for leftover in folder.path.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
    return there


def _finished(folder: Folder, there: Mapping[int, Reasons]) -> ExportSummary | None:
    """Returns the summary if all parts are present; otherwise removes summary and array and returns None."""
    if SUMMARY in folder.names():
        summary = read_summary(folder.url)
        if set(there) == set(range(summary.parts)):
            return summary
    folder.remove(SUMMARY)
    folder.remove(VECTORS)
    return None


def _summary(folder: Folder, origin: Origin, ledger: _Ledger) -> ExportSummary:
    missing = {part_name(number) for number in range(ledger.parts)} - set(folder.names())
    if missing:
        raise ExportError(
            f"{folder.url} lacks {min(missing)}, which was written; name a folder that every process of Ray sees"
        )
    return ExportSummary(
        folder=folder.url,
        rows=ledger.reasons.total(),
        ok=ledger.reasons[None],
        reasons={reason: n for reason, n in ledger.reasons.most_common() if reason is not None},
        parts=ledger.parts,
        reused_parts=ledger.reused_parts,
        origin=origin,
        messages=ledger.messages,
    )
