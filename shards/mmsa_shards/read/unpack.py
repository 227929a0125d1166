r"""A file -> its bytes: unzipped, without byte order mark, with \n at the end of lines, piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from mmsa_shards.errors import PrepareError

_PIECE = 1 << 18  # bytes read or unzipped at a time

# Gzipped files of molecules unpack to 3 to 60 times their size, gzip's utmost is 1032. The ratio is looked at
# over stretches of 16 MiB, so that a large good file does not hide a bomb at its end.
_HIGHEST_RATIO = 250
_STRETCH = 1 << 24


def read_pieces(stream: BinaryIO, progress: Callable[[int], None] | None) -> Iterator[bytes]:
    """Yields the bytes of a file as they are, telling `progress` how many have been asked for.

    Raises:
        EOFError: fewer come than there were when it was opened; servers may answer so without an error.
    """
    taken, size = 0, getattr(stream, "size", None)
    while piece := stream.read(_PIECE):
        taken += len(piece)
        if progress is not None:
            progress(taken)
        yield piece
    if size is not None and taken < size:
        raise EOFError(f"{taken} of its {size} bytes came")


def unpacked(pieces: Iterator[bytes], path: str) -> Iterator[bytes]:
    """Yields the content of a file, unzipped if it is gzipped, to the last byte before it breaks off.

    Raises:
        EOFError: a gzip member is cut short. (The gzip module raises it before it has given out all there is.)
        zlib.error: a gzip member is damaged.
        PrepareError: the file unpacks to far more than molecules do.
    """
    packed = next(pieces, b"")
    if not packed.startswith(b"\x1f\x8b"):
        yield packed
        yield from pieces
        return
    member = zlib.decompressobj(wbits=31)
    taken = given = 0  # bytes in this stretch
    while packed:
        piece = member.decompress(packed, _PIECE)  # bounded, however far it would expand
        taken += len(packed) - len(member.unconsumed_tail) - len(member.unused_data)
        given += len(piece)
        if given >= _STRETCH:
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
    r"""Yields the same text without byte order mark and with \n for \r\n and for \r.

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
            held = b"\r" if piece.endswith(b"\r") else b""  # what follows may be its \n
            piece = piece[: len(piece) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield piece
    if held:
        yield b"\n"
