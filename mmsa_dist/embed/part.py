"""A piece of the input -> a part of the export, by itself: in the process of the export, or in one of Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.parquet import Origin, Reasons, write_part
from mmsa_dist.embed.source import Piece
from mmsa_shards.folder import Folder

MadePart = tuple[Reasons, dict[str, str]]
"""What became of the rows of a part, and the first message of each reason."""


def make_part(
    embedder: Embedder,
    origin: Origin,
    url: str,
    number: int,
    piece: Piece,
    progress: Callable[[int], None] | None = None,
) -> MadePart:
    """Embeds a piece, writes its part, and returns what became of its rows.

    Args:
        embedder: of `origin`.
        origin: of the export.
        url: of its folder.
        number: of the part.
        piece: of the input.
        progress: told how many rows of the piece are done.
    """
    rows, vectors = piece.embed(embedder, progress)
    write_part(Folder(url), number, rows, vectors, origin)
    messages = {row.reason: row.message for row in reversed(rows) if row.reason is not None}
    return Counter(row.reason for row in rows), messages
