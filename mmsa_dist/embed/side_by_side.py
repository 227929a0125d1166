"""Parts of an export in Ray: as many at a time as there are GPUs, or else cores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from sklearn.base import clone

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.parquet import Origin
from mmsa_dist.embed.part import MadePart, make_part
from mmsa_dist.embed.source import Piece
from mmsa_shards.cluster import ray_pool
from mmsa_shards.folder import Folder


def side_by_side(
    parallel: int,
    embedder: Embedder,
    origin: Origin,
    url: str,
    pieces: Iterable[tuple[int, Piece]],
    tell: Callable[[int], None],
) -> Iterator[MadePart]:
    """Makes parts in the Ray cluster that RAY_ADDRESS names, or in a local one; yields what became of the rows of each.

    Args:
        parallel: parts at a time; 0 takes what the cluster has.
        embedder: of `origin`.
        origin: of the export.
        url: of its folder, which all nodes see.
        pieces: drawn when a worker is free for them, so few are held at a time.
        tell: called every second or so while none is done.
    """
    pieces = iter(pieces)
    first = next(pieces, None)
    if first is None:  # all are there: Ray takes seconds to start
        return
    with ray_pool(parallel) as pool:
        if (path := Folder(url).path) is not None:
            pool.check_that_all_see(path)
        on_gpu = pool.gpus > 0 and (embedder.device is None or torch.device(embedder.device).type == "cuda")
        shared = pool.share(_portable(embedder, readers=max(1, pool.workers // pool.gpus) if on_gpu else 1))
        calls = ((shared, origin, url, number, piece) for number, piece in chain([first], pieces))
        yield from pool.map(make_part, calls, gpus=int(on_gpu), heartbeat=lambda: tell(0))


def _portable(embedder: Embedder, readers: int) -> Embedder:
    """The same embedder for another process, with its model in memory, on no device."""
    pretrained = embedder.pretrained
    pretrained = dataclasses.replace(pretrained, model=pretrained.model.cpu())
    portable: Embedder = clone(embedder).set_params(model=pretrained, readers=readers)
    return portable
