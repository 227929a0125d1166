"""Parallel export in Ray: one part at a time per GPU, or per core without GPUs."""

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
    """Makes parts in the Ray cluster at RAY_ADDRESS, or in a local one; yields the outcome of each.

    Args:
        parallel: parts at a time; 0 takes as many as the cluster has room for.
        embedder: the one described by `origin`.
        origin: of the export.
        url: of the export's folder, visible to all nodes.
        pieces: consumed when a worker is free, so that few are held in memory.
        tell: called about once a second while waiting.
    """
    pieces = iter(pieces)
    first = next(pieces, None)
    if first is None:  # nothing to do: starting Ray takes seconds
        return
    with ray_pool(parallel) as pool:
        if (path := Folder(url).path) is not None:
            pool.check_that_all_see(path)
        on_gpu = pool.gpus > 0 and (embedder.device is None or torch.device(embedder.device).type == "cuda")
        shared = pool.share(_portable(embedder, readers=max(1, pool.workers // pool.gpus) if on_gpu else 1))
        calls = ((shared, origin, url, number, piece) for number, piece in chain([first], pieces))
        yield from pool.map(make_part, calls, gpus=int(on_gpu), heartbeat=lambda: tell(0))


def _portable(embedder: Embedder, readers: int) -> Embedder:
    """Returns a copy of the embedder for another process, with its model loaded on the CPU."""
    pretrained = embedder.pretrained
    pretrained = dataclasses.replace(pretrained, model=pretrained.model.cpu())
    portable: Embedder = clone(embedder).set_params(model=pretrained, readers=readers)
    return portable
