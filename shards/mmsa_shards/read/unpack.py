r"""A file -> its bytes piece by piece: decompressed, without byte order mark, with \n at line ends."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from mmsa_shards.errors import PrepareError

_PIECE_BYTES = 1 << 18  # read or decompressed at a time

# Gzipped files of molecules unpack to 3 to 60 times their size, and gzip's maximum is 1032. The ratio is checked for
# each 16 MiB of output, so that a large good file cannot hide a bomb at its end.
_HIGHEST_RATIO = 250
_CHECKED_BYTES = 1 << 24


def read_pieces(stream: BinaryIO, progress: Callable[[int], None] | None) -> Iterator[bytes]:
    """Yields the raw bytes of a file, calling `progress` with the number read so far.

    Raises:
        EOFError: fewer bytes came than the size at opening; servers may send so without an error.
    """
    taken, size = 0, getattr(stream, "size", None)
    while piece := stream.read(_PIECE_BYTES):
        taken += len(piece)
        if progress is not None:
            progress(taken)
        yield piece
    if size is not None and taken < size:
        raise EOFError(f"{taken} of its {size} bytes came")


def unpacked(pieces: Iterator[bytes], path: str) -> Iterator[bytes]:
    """Yields the content of a file, decompressed if gzipped, up to the last byte before a truncation.

    Raises:
        EOFError: a gzip member is truncated. (The gzip module raises it before it has returned all data.)
        zlib.error: a gzip member is damaged.
        PrepareError: the file unpacks to far more than molecules do.
    """
    packed = next(pieces, b"")
    if not packed.startswith(b"\x1f\x8b"):
        yield packed
        yield from pieces
        return
    member = zlib.decompressobj(wbits=31)
    taken = given = 0  # bytes of input and output since the last check
    while packed:
        piece = member.decompress(packed, _PIECE_BYTES)  # limits the output, however far it would expand
        taken += len(packed) - len(member.unconsumed_tail) - len(member.unused_data)
        given += len(piece)
        if given >= _CHECKED_BYTES:
            if given > _HIGHEST_RATIO * taken:
                raise PrepareError(
                    f"{path} unpacks to {given // max(taken, 1)} times its size, as a gzip bomb does and molecules do "
                    f"not (at most {_HIGHEST_RATIO} times): fetch it again, or unpack it with gunzip and look at it"
                )
            taken = given = 0
        yield piece
        packed = member.unconsumed_tail
        if member.eof:
            packed = member.unused_data.lstrip(b"\0") or next(pieces, b"").lstrip(b"\0")
            if not packed:
                return
            member = zlib.decompressobj(wbits=31)
        packed = packed or next(pieces, b"")
    raise EOFError("its gzip stream has no end")


def plain(pieces: Iterable[bytes], path: str) -> Iterator[bytes]:
    r"""Yields the same text without byte order mark, and with \r\n and \r replaced by \n.

    Raises:
        PrepareError: the text is in UTF-16.
    """
    first, held = True, b""
    for piece in pieces:
        if first and piece:
            if piece.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise PrepareError(f"{path} is in UTF-16: save it as UTF-8")
            piece, first = piece.removeprefix(b"\xef\xbb\xbf"), False
        if held or b"\r" in piece:
            piece = held + piece
            held = b"\r" if piece.endswith(b"\r") else b""  # its \n may follow in the next piece
            piece = piece[: len(piece) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield piece
    if held:
        yield b"\n"
