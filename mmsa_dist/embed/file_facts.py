"""Digest and row count of a file, from one pass over it before its rows are embedded."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import NamedTuple

import fsspec
import pyarrow.parquet as pq

from mmsa_shards.read import kind_of
from mmsa_shards.read.unpack import plain, read_pieces, unpacked

# How molfiles end, alone and in an SDF; a molfile has at least one of the two, a line of SMILES neither.
_ENDS_OF_MOLFILES = (b"M  END", b"$$$$")


class FileFacts(NamedTuple):
    """Digest and row count of a file."""

    digest: str
    """Of the name and the entire content, so that a change anywhere in the file is detected."""
    rows: int
    """As records are numbered (`mmsa_shards.read.Place`): exact for Parquet; for text the number of lines or molfiles,
    some of which may hold no molecule."""


def facts_of(path: str) -> FileFacts:
    """Returns the facts of a file that `mmsa_shards.read.read_records` can read.

    Raises:
        PrepareError: its compression ratio is implausible for molecules.
    """
    digest = hashlib.sha256(PurePosixPath(path).name.encode())
    with fsspec.open(path, "rb") as stream:

        def hashed() -> Iterator[bytes]:
            for piece in read_pieces(stream, None):
                digest.update(piece)
                yield piece

        pieces = hashed()
        rows = 0
        if kind_of(path) == ".parquet":
            for _ in pieces:
                pass
            rows = pq.ParquetFile(stream, pre_buffer=False).metadata.num_rows
        else:
            with suppress(EOFError, zlib.error):  # the reader of the records decides whether damage is allowed
                rows = _rows_of(plain(unpacked(pieces, path), path))
            for _ in pieces:  # hash what follows the damage
                pass
    return FileFacts(digest.hexdigest(), rows)


def _rows_of(text: Iterable[bytes]) -> int:
    """Counts molfiles in a text, or its lines if there are none; misses a molfile end split between two pieces."""
    lines, ends, last = 0, [0, 0], b"\n"
    for piece in text:
        lines += piece.count(b"\n")
        ends = [number + piece.count(end) for number, end in zip(ends, _ENDS_OF_MOLFILES, strict=True)]
        last = piece[-1:] or last
    return max(ends) or lines + (last != b"\n")
