"""What can be embedded: folders of shards and files of molecules, both as rows in a fixed order, from any row on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Protocol

import fsspec
import numpy as np
from numpy.typing import NDArray

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.parquet import EmbeddedRow
from mmsa_shards.manifest import Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.read import Record, Refused, Structure, read_records
from mmsa_shards.shard import read_block

Row = tuple[EmbeddedRow, NDArray[np.float32]]
"""What is known of an input row, and its vector (D,); NaN where there is none."""

_TIP = 1 << 20  # bytes at either end of a file that enter its digest


class Source(Protocol):
    """Input rows in a fixed order.

    Wherever one starts, batches are cut at the same rows, so that a row gets the same bits.
    """

    digest: str
    """Changes when the input does."""
    total: int | None
    """Rows in all; None where only reading would tell."""

    def rows(self, start: int) -> Iterator[Row]:
        """Embeds the rows from number `start` on, in order."""
        ...


def open_source(
    source: str | os.PathLike[str] | Sequence[str], embedder: Embedder, options: PrepareOptions | None = None
) -> Source:
    """Finds out what `source` is.

    Args:
        source: a folder of shards, or one or several files; paths or URLs that fsspec knows.
        embedder: will embed the rows.
        options: how files are read (`smiles_column`, `id_column`, `allow_truncated`); None takes the defaults.

    Raises:
        ValueError: there is no such thing, or it is of no kind that can be read.
    """
    if options is None:
        from mmsa_dist.config.load import load_config  # here, for the import of an embedder needs no YAML

        options = load_config().prepare
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        files, where = fsspec.core.url_to_fs(path)
        if files.isdir(where):
            return ShardRows(path, embedder)
        return FileRows([path], embedder, options)
    return FileRows(list(source), embedder, options)


class ShardRows:
    """Rows of a folder of shards: the training split, then the validation split, each in the manifest's order.

    Nothing is parsed again: graph, drawing and, unless the embedder's `conformers` is ``none``, 3D are those of
    the block.

    Raises:
        ManifestError: `folder` has no good manifest.
    """

    def __init__(self, folder: str, embedder: Embedder) -> None:
        manifest = Manifest.load(folder)
        self._folder, self._embedder = folder, embedder
        self._shards = (*manifest.split("train"), *manifest.split("val"))
        self.digest = manifest.digest
        self.total: int | None = sum(shard.molecules for shard in self._shards)

    def rows(self, start: int) -> Iterator[Row]:
        """Embeds the rows from number `start` on, in order; blocks before them are not read."""
        for shard in self._shards:
            for number, entry in enumerate(shard.blocks):
                skipped = min(start, entry.molecules)
                start -= skipped
                if skipped == entry.molecules:
                    continue
                again = skipped % self._embedder.batch_size_
                block = read_block(self._folder, shard, number).slice(skipped - again)
                vectors, without = self._embedder.embed_block(block)
                reasons = {row: reason for row, (reason, _) in without.items()}
                names = zip(*(block[column].to_pylist() for column in ("id", "inchikey", "smiles")), strict=True)
                for row, (name, key, smiles) in islice(enumerate(names), again, None):
                    yield EmbeddedRow(name, key, smiles, reasons.get(row)), vectors[row]


class FileRows:
    """Rows of files of molecules, one file after the other; a row that cannot be read is a row without a vector.

    Molfiles enter as the SMILES that they amount to: their own 3D coordinates are not used.

    Raises:
        PrepareError: a file is missing or of no known kind.
    """

    def __init__(self, paths: Sequence[str], embedder: Embedder, options: PrepareOptions) -> None:
        self._paths, self._embedder, self._options = paths, embedder, options
        for path in paths:  # before anything is written
            next(read_records(path, options))
        how = repr((options.smiles_column, options.id_column, options.allow_truncated))
        self.digest = hashlib.sha256("".join([how, *map(_fingerprint, paths)]).encode()).hexdigest()
        self.total: int | None = None

    def rows(self, start: int) -> Iterator[Row]:
        """Embeds the rows from number `start` on, in order; those before their batch are read, not embedded."""
        again = start % self._embedder.batch_size_
        return islice(self._batches(start - again), again, None)

    def _batches(self, start: int) -> Iterator[Row]:
        records = islice((r for path in self._paths for r in read_records(path, self._options)), start, None)
        while chunk := list(islice(records, self._embedder.batch_size_)):
            given = [_smiles(record) for record in chunk]
            result = self._embedder.embed(given)
            reasons = {bad.row: bad.reason for bad in result.invalid}
            for row, record in enumerate(chunk):
                reason = record.reason if isinstance(record, Refused) else reasons.get(row)
                smiles = result.smiles[row] or given[row]
                yield EmbeddedRow(record.id, result.inchikeys[row], smiles, reason), result.vectors[row]


def _smiles(record: Record | Refused) -> str | None:
    if isinstance(record, Refused):
        return None
    return record.structure.text if record.structure.form == "SMILES" else _of_molfile(record.structure)


def _of_molfile(structure: Structure) -> str | None:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromMolBlock(structure.text)
        if mol is None:  # what is wrong with it is for the standardization to say
            mol = Chem.MolFromMolBlock(structure.text, sanitize=False)
        return None if mol is None else Chem.MolToSmiles(mol)


def _fingerprint(path: str) -> str:
    """Name, size and both ends of a file: enough to notice that it is another one, cheap for a file of any size."""
    digest = hashlib.sha256(PurePosixPath(path).name.encode())
    with fsspec.open(path, "rb") as file:
        digest.update(file.read(_TIP))
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TIP, 0))
        digest.update(file.read(_TIP) + str(size).encode())
    return digest.hexdigest()
