"""What can be embedded: folders of shards and files of molecules, as pieces of equal numbers of rows in a fixed order.

A piece holds all that its vectors depend on, so that pieces can be embedded by anyone, anywhere and in any order, and
still give the same bytes.
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
"""What is known of n input rows, and their vectors (n, D); NaN where there is none."""
Progress = Callable[[int], None]
"""Is told how many rows of a piece are done."""

STDIN = "-"

_SHARD = re.compile(r"(train|val)-\d+\.tar")


class Piece(Protocol):
    """Input rows that follow each other; can be pickled."""

    def __len__(self) -> int:
        """Number of its rows."""
        ...

    def embed(self, embedder: Embedder, progress: Progress | None = None) -> Embedded:
        """Embeds its rows, in order."""
        ...


class Source(Protocol):
    """Input rows in a fixed order."""

    digest: str
    """Changes when the input does."""
    read_by: str
    """Versions of what makes molecules of it; empty where it holds molecules, with their conformers."""

    @property
    def total(self) -> int:
        """Rows in all; of files about so many, and the better known the more of them `pieces` has read."""
        ...

    def pieces(self, rows: int) -> Iterator[Piece]:
        """Cuts all input rows into pieces of `rows` each, of which the last may have fewer."""
        ...


def open_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: PrepareOptions | None = None,
    out: str | os.PathLike[str] = "",
) -> Source:
    """Finds out what `source` is.

    Args:
        source: a folder of shards, or one or several files, folders of files or patterns with ``*``; paths or URLs
            that fsspec knows. ``-`` is SMILES from standard input, one a line, as in a ``.smi`` file, gzipped or not.
        options: how files are read (`smiles_column`, `id_column`, `allow_truncated`); None takes the defaults.
        out: folder of the result, which is no source where it lies below one.

    Raises:
        ValueError: there is no such thing, or it is of no kind that can be read.
    """
    if options is None:
        from mmsa_dist.config.load import load_config  # here, for the import of an embedder needs no YAML

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

    Nothing is parsed again: graph, drawing and, unless the embedder's `conformers` is ``none``, 3D are those of
    the block.

    Raises:
        ManifestError: `folder` has no good manifest.
    """

    def __init__(self, folder: str) -> None:
        manifest = Manifest.load(folder)
        self._folder = folder
        self.read_by = ""
        self._shards = (*manifest.split("train"), *manifest.split("val"))
        self.digest = manifest.digest
        self.total = sum(shard.molecules for shard in self._shards)

    def pieces(self, rows: int) -> Iterator[Piece]:
        """See `Source`; no shard is opened."""
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
    """Rows of blocks that follow each other."""

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
    """Rows of files of molecules, one file after the other; a row that cannot be read is a row without a vector.

    Of molfiles the structure counts and not their 3D coordinates. Standard input is kept in a temporary file while this
    object lives, because what it holds must be known before anything is written.

    Raises:
        PrepareError: a file is missing or of no known kind.
        ValueError: standard input is named twice.
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
        """See `Source`; reads the files, once."""
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
    """Records of files, as text."""

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
    """The SMILES as it is given, where one is."""
    structure = _structure(record)
    return structure.text if structure is not None and structure.form == "SMILES" else None


def _readers_of_smiles() -> str:
    from mmsa_shards import from_smiles  # here, for it needs RDKit, and shards are embedded without

    return ", ".join(f"{name} {version}" for name, version in from_smiles.versions().items())


def _standard_input() -> TemporaryDirectory[str]:
    folder: TemporaryDirectory[str] = TemporaryDirectory(prefix="mmsa-embed-")
    with Path(_in(folder)).open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return folder


def _in(folder: TemporaryDirectory[str]) -> str:
    return f"{folder.name}/stdin.smi"
