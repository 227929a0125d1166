"""Makes one export part from one input piece, in the exporting process or in a Ray worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.parquet import Origin, Reasons, write_part
from mmsa_dist.embed.source import Piece
from mmsa_shards.folder import Folder

MadePart = tuple[Reasons, dict[str, str]]
"""Reason counts of a part, and the first message for each reason."""


def make_part(
    embedder: Embedder,
    origin: Origin,
    url: str,
    number: int,
    piece: Piece,
    progress: Callable[[int], None] | None = None,
) -> MadePart:
    """Embeds a piece, writes its part, and returns the outcome.

    Args:
        embedder: the one described by `origin`.
        origin: of the export.
        url: of the export's folder.
        number: of the part.
        piece: of the input.
        progress: called with the number of rows of the piece that are done.
    """
    rows, vectors = piece.embed(embedder, progress)
    write_part(Folder(url), number, rows, vectors, origin)
    messages = {row.reason: row.message for row in reversed(rows) if row.reason is not None}
    return Counter(row.reason for row in rows), messages
