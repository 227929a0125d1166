"""Inputs of an export, folders of shards or files of molecules, cut into pieces of equal size in a fixed order.

A piece holds all that its vectors depend on, so pieces can be embedded in any process and any order and give the same
bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.file_facts import facts_of
from mmsa_dist.embed.parquet import EmbeddedRow
from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.manifest import MANIFEST_NAME, BlockEntry, Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.read import Record, Refused, Structure, files_of, is_known_kind, read_records
from mmsa_shards.shard import read_entry

Embedded = tuple[list[EmbeddedRow], NDArray[np.float32]]
"""n output rows, and their vectors (n, D); NaN for rows without one."""
Progress = Callable[[int], None]
"""Called with the number of rows of a piece that are done."""

STDIN = "-"

_SHARD = re.compile(r"(train|val)-\d+\.tar")


class Piece(Protocol):
    """Consecutive input rows; picklable."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        ...

    def embed(self, embedder: Embedder, progress: Progress | None = None) -> Embedded:
        """Embeds the rows in order."""
        ...


class Source(Protocol):
    """Input rows in a fixed order."""

    digest: str
    """Digest that changes with the input."""
    read_by: str
    """Versions of the libraries that parse the input; empty for shards, whose molecules are already made."""

    @property
    def total(self) -> int:
        """Total number of rows; for files an estimate that improves as `pieces` reads them."""
        ...

    def pieces(self, rows: int) -> Iterator[Piece]:
        """Yields all input rows in pieces of `rows` each; the last may have fewer."""
        ...


def open_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: PrepareOptions | None = None,
    out: str | os.PathLike[str] = "",
) -> Source:
    """Returns the reader for `source`.

    Args:
        source: a folder of shards, or one or more files, folders of files or patterns with ``*``; paths or URLs that
            fsspec supports. ``-`` reads SMILES from standard input, one per line as in a ``.smi`` file, gzipped or not.
        options: how files are read (`smiles_column`, `id_column`, `allow_truncated`); None takes the defaults.
        out: output folder, excluded from the input if it lies below a source.

    Raises:
        ValueError: `source` does not exist, cannot be read, or mixes shards with other inputs.
    """
    if options is None:
        from mmsa_dist.config.load import load_config  # here, so that importing the embedder does not need YAML

        options = load_config().prepare
    paths = [os.fspath(path) for path in ([source] if isinstance(source, str | os.PathLike) else source)]
    of_shards = [path for path in paths if _is_of_shards(path)]
    if of_shards and len(paths) > 1:
        raise ValueError(
            f"{of_shards[0]} is a folder of shards, which is embedded alone; give others a run of their own"
        )
    if of_shards:
        return ShardRows(paths[0])
    files = (files_of(path, without=os.fspath(out)) if path != STDIN else [path] for path in paths)
    return FileRows(list(chain.from_iterable(files)), options)


def _is_of_shards(path: str) -> bool:
    if path in ("", STDIN) or is_known_kind(path):
        return False
    return any(name == MANIFEST_NAME or _SHARD.fullmatch(name) for name in Folder(path).names())


class ShardRows:
    """Rows of a folder of shards: the training split, then the validation split, each in the manifest's order.

    Nothing is parsed again: graph, depiction and, unless the embedder's `conformers` is ``none``, 3D come from the
    block.

    Raises:
        ManifestError: `folder` has no valid manifest.
    """

    def __init__(self, folder: str) -> None:
        manifest = Manifest.load(folder)
        self._folder = folder
        self.read_by = ""
        self._shards = (*manifest.split("train"), *manifest.split("val"))
        self.digest = manifest.digest
        self.options = manifest.options
        self.total = sum(shard.molecules for shard in self._shards)

    def pieces(self, rows: int) -> Iterator[Piece]:
        """See `Source`; opens no shard."""
        spans: list[_Span] = []
        wanted = rows
        for shard in self._shards:
            for number, entry in enumerate(shard.blocks):
                start = 0
                while start < entry.molecules:
                    stop = min(start + wanted, entry.molecules)
                    spans.append(_Span(shard.name, number, entry, start, stop))
                    wanted -= stop - start
                    start = stop
                    if wanted == 0:
                        yield ShardPiece(self._folder, tuple(spans))
                        spans, wanted = [], rows
        if spans:
            yield ShardPiece(self._folder, tuple(spans))


@dataclass(frozen=True)
class _Span:
    """Rows `start:stop` of a block."""

    shard: str
    number: int
    entry: BlockEntry
    start: int
    stop: int


@dataclass(frozen=True)
class ShardPiece:
    """Rows of consecutive blocks."""

    folder: str
    spans: tuple[_Span, ...]

    def __len__(self) -> int:
        return sum(span.stop - span.start for span in self.spans)

    def embed(self, embedder: Embedder, progress: Progress | None = None) -> Embedded:
        """See `Piece`."""
        blocks = [
            read_entry(self.folder, s.shard, s.number, s.entry).slice(s.start, s.stop - s.start) for s in self.spans
        ]
        block = pa.concat_batches(blocks)
        vectors, without = embedder.embed_block(block, progress)
        names = zip(*(block[column].to_pylist() for column in ("id", "inchikey", "smiles")), strict=True)
        rows = [EmbeddedRow(*of_row, *without.get(row, (None, ""))) for row, of_row in enumerate(names)]
        return rows, vectors


class FileRows:
    """Rows of molecule files, one file after the other; an unreadable row becomes a row without a vector.

    3D coordinates of molfiles are ignored. Standard input is copied to a temporary file that lives as long as this
    object, because its digest is needed before anything is written.

    Raises:
        PrepareError: a file is missing or of an unknown kind.
        ValueError: standard input is named more than once.
    """

    def __init__(self, paths: Sequence[str], options: PrepareOptions) -> None:
        self._options = options
        if paths.count(STDIN) > 1:
            raise ValueError(f"standard input ({STDIN}) is named {paths.count(STDIN)} times; it can be read once")
        self._kept = _standard_input() if STDIN in paths else None
        self._paths = [path if path != STDIN or not self._kept else _in(self._kept) for path in paths]
        for path in self._paths:  # before anything is written
            next(self._records_of(path))
        facts = [facts_of(path) for path in self._paths]
        how = repr((options.smiles_column, options.id_column, options.allow_truncated))
        self.digest = hashlib.sha256("".join([how, *(of_file.digest for of_file in facts)]).encode()).hexdigest()
        self.read_by = _readers_of_smiles()
        self._rows = [of_file.rows for of_file in facts]
        self.total = sum(self._rows)

    def pieces(self, rows: int) -> Iterator[Piece]:
        """See `Source`; reads each file once."""
        records = ((file, record) for file, path in enumerate(self._paths) for record in self._records_of(path))
        read = 0
        while drawn := list(islice(records, rows)):
            read += len(drawn)
            file, last = drawn[-1]
            self.total = read + max(0, self._rows[file] - last.place.number) + sum(self._rows[file + 1 :])
            yield RecordPiece(tuple(record for _, record in drawn))

    def _records_of(self, path: str) -> Iterator[Record | Refused]:
        try:
            yield from read_records(path, self._options)
        except PrepareError as error:
            if self._kept is None or path != _in(self._kept):
                raise
            raise PrepareError(str(error).replace(path, "standard input")) from error


@dataclass(frozen=True)
class RecordPiece:
    """Records of files as text."""

    records: tuple[Record | Refused, ...]

    def __len__(self) -> int:
        return len(self.records)

    def embed(self, embedder: Embedder, progress: Progress | None = None) -> Embedded:
        """See `Piece`."""
        result = embedder.embed([_structure(record) for record in self.records], progress)
        why = {bad.row: (bad.reason, bad.message) for bad in result.invalid}
        why |= {row: (bad.reason, bad.message) for row, bad in enumerate(self.records) if isinstance(bad, Refused)}
        rows = [
            EmbeddedRow(
                record.id,
                result.inchikeys[row],
                result.smiles[row] or _smiles(record),
                *why.get(row, (None, "")),
            )
            for row, record in enumerate(self.records)
        ]
        return rows, result.vectors


def _structure(record: Record | Refused) -> Structure | None:
    return None if isinstance(record, Refused) else record.structure


def _smiles(record: Record | Refused) -> str | None:
    """Returns the SMILES as given, or None if the record has none."""
    structure = _structure(record)
    return structure.text if structure is not None and structure.form == "SMILES" else None


def _readers_of_smiles() -> str:
    from mmsa_shards import from_smiles  # here, because it needs RDKit, and embedding shards does not

    return ", ".join(f"{name} {version}" for name, version in from_smiles.versions().items())


def _standard_input() -> TemporaryDirectory[str]:
    folder: TemporaryDirectory[str] = TemporaryDirectory(prefix="mmsa-embed-")
    with Path(_in(folder)).open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return folder


def _in(folder: TemporaryDirectory[str]) -> str:
    return f"{folder.name}/stdin.smi"
