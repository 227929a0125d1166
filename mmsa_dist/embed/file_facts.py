"""What has to be known of a file before its rows are embedded, out of one read of it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import NamedTuple

import fsspec
import pyarrow.parquet as pq

from mmsa_shards.read.unpack import plain, read_pieces, unpacked

# How molfiles end, alone and in an SDF; a file has at least one of the two, and no line of SMILES has either.
_ENDS_OF_MOLFILES = (b"M  END", b"$$$$")


class FileFacts(NamedTuple):
    """Facts of a file."""

    digest: str
    """Of its name and its content, all of it: vectors of what has changed in the middle would be those of before."""
    rows: int
    """As its records count them (`mmsa_shards.read.Place`): exact of Parquet; of text the lines or the molfiles, some
    of which may hold no molecule."""


def facts_of(path: str) -> FileFacts:
    """Looks through a file that `mmsa_shards.read.read_records` reads.

    Raises:
        PrepareError: it unpacks to far more than molecules do.
    """
    digest = hashlib.sha256(PurePosixPath(path).name.encode())
    with fsspec.open(path, "rb") as stream:

        def hashed() -> Iterator[bytes]:
            for piece in read_pieces(stream, None):
                digest.update(piece)
                yield piece

        pieces = hashed()
        rows = 0
        if path.lower().endswith(".parquet"):
            for _ in pieces:
                pass
            rows = pq.ParquetFile(stream, pre_buffer=False).metadata.num_rows
        else:
            with suppress(EOFError, zlib.error):  # whether damage is allowed is for who reads the records
                rows = _rows_of(plain(unpacked(pieces, path), path))
            for _ in pieces:  # behind the damage
                pass
    return FileFacts(digest.hexdigest(), rows)


def _rows_of(text: Iterable[bytes]) -> int:
    """Molfiles in a text, or where there are none its lines; a molfile whose end two pieces share is missed."""
    lines, ends, last = 0, [0, 0], b"\n"
    for piece in text:
        lines += piece.count(b"\n")
        ends = [number + piece.count(end) for number, end in zip(ends, _ENDS_OF_MOLFILES, strict=True)]
        last = piece[-1:] or last
    return max(ends) or lines + (last != b"\n")
