"""Which source of neighbours a configuration asks for; FAISS, which comes with the extra `train`, is needed here."""

from __future__ import annotations

from typing import Literal

import torch

from mmsa_dist.structure.global_neighbours import GlobalNeighbours
from mmsa_dist.structure.neighbours import IndexKind
from mmsa_dist.structure.sources import BatchNeighbours, NeighbourSource, NoNeighbours


def neighbour_source(
    kind: Literal["global", "batch", "none"],
    k: int,
    *,
    num_molecules: int,
    width: int,
    refresh_every: int,
    refresh_lag: int,
    index: IndexKind,
    recall_sample: int,
    recall_target: float,
    device: torch.device | str = "cpu",
) -> NeighbourSource:
    """Returns the source of neighbours for training that ``model.structure.neighbours`` names.

    Args:
        kind: ``global``, ``batch`` or ``none``.
        k: neighbours in a hyperedge, the molecule itself not counted.
        num_molecules: in the training split.
        width: of the unified embedding u.
        refresh_every: steps between two rebuilds of the index.
        refresh_lag: steps that training goes on with the old index while the new one is built; 0 = none.
        index: kind of search; ``auto`` goes by the rows of a rank.
        recall_sample: queries on which recall is measured at each rebuild.
        recall_target: what approximate search is tuned to, and below which a warning is given.
        device: where the bank is kept; the device that the process group works on.

    Raises:
        ValueError: `kind` is none of the three.
    """
    if kind == "none":
        return NoNeighbours()
    if kind == "batch":
        return BatchNeighbours(k)
    if kind == "global":
        return GlobalNeighbours(
            num_molecules,
            width,
            k,
            refresh_every=refresh_every,
            refresh_lag=refresh_lag,
            index=index,
            recall_sample=recall_sample,
            recall_target=recall_target,
            device=device,
        )
    raise ValueError(f"model.structure.neighbours={kind!r} must be one of global, batch, none")
