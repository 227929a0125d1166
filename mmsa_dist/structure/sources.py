"""Where the neighbours of a batch come from: the bank of all molecules, the batch itself, a table, or nowhere.

B molecules in a batch, K neighbours, V distinct neighbours outside the batch, C width of u,
F finite rows, R rows of a table of embeddings, N of any table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmsa_dist.structure.nearest import ProductCandidates, moments, nearest, spread_of


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of the B molecules of a batch, as vertices of the batch's hypergraph.

    Vertices 0..B-1 are the molecules of the batch, whose rows are fresh and carry a gradient; vertex B + v is
    row v of `stale_VC`, a value of an earlier step without one. A neighbour in the batch is its fresh row.
    """

    ids_BK: Tensor
    """(B, K) int64: molecule numbers; -1 where a neighbour is missing or has no number."""
    distances_BK: Tensor
    """(B, K) float64: squared Euclidean distance in u when the index was built; infinite where missing."""
    vertices_BK: Tensor
    """(B, K) int64 in 0..B+V-1; -1 where missing."""
    stale_VC: Tensor
    """(V, C) float16: rows of the distinct neighbours outside the batch."""
    spread: Tensor
    """() float64: mean squared distance of two of the molecules among which neighbours were searched; the unit in
    which `distances_BK` are near or far. 0 if there are fewer than two."""


class NeighbourSource(ABC):
    """Finds neighbours and may store embeddings; this base class stores none.

    Methods are collective: all ranks call them at the same time, `find` with equally many molecules.
    """

    @abstractmethod
    def find(self, u_BC: Tensor, index_B: Tensor) -> Neighbours:
        """Returns the neighbours of a batch.

        Args:
            u_BC: (B, C) unified embeddings; no gradient passes through the choice of neighbours. A row that is not
                finite finds none and is none.
            index_B: (B,) int64: molecule numbers in the training split, -1 for others.
        """

    def observe(self, index_B: Tensor, u_BC: Tensor, step: int) -> None:  # noqa: B027 - most sources store nothing
        """Stores the embeddings of a batch, computed at optimizer step `step`."""

    def refresh(self, step: int, *, now: bool = False) -> bool:
        """Rebuilds the index if it is due at `step`, or `now`; returns whether `find` uses a new one."""
        return False

    def meters(self) -> dict[str, float]:
        """Returns metrics of what is stored, by name."""
        return {}

    def warnings(self) -> list[str]:
        """Returns warnings for the user: what is wrong and what to change; not collective."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what this rank stores as plain tensors (see `global_neighbours.reshard`)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads what `state_dict` returned.

        Raises:
            ValueError: the state is that of another source.
        """
        if state:
            raise ValueError(
                f"neighbour state: {type(self).__name__} stores nothing, but the checkpoint has {sorted(state)}; "
                "set model.structure.neighbours to what it was when the checkpoint was made"
            )


class NoNeighbours(NeighbourSource):
    """Every molecule is alone in its hyperedge."""

    def find(self, u_BC: Tensor, index_B: Tensor) -> Neighbours:
        """See `NeighbourSource`."""
        empty_B0 = index_B.new_empty(len(index_B), 0)
        stale_0C, spread = u_BC.new_empty(0, u_BC.shape[1]).half(), u_BC.new_zeros((), dtype=torch.float64)
        return Neighbours(empty_B0, empty_B0.double(), empty_B0, stale_0C, spread)


class BatchNeighbours(NeighbourSource):
    """The nearest molecules within the batch of this rank.

    Args:
        k: K.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def find(self, u_BC: Tensor, index_B: Tensor) -> Neighbours:
        """See `NeighbourSource`; a non-finite row finds no neighbours and is none."""
        rows_BC = u_BC.detach().half()
        finite_F = rows_BC.isfinite().all(dim=1).nonzero().flatten()
        rows_FC = rows_BC[finite_F]
        distance_Bk, row_Bk, _ = nearest(ProductCandidates(rows_FC), rows_BC, rows_FC, self._k + 1)
        vertex_Bk = look_up(finite_F, row_Bk)
        # The molecule itself moves behind the K others; if K + 1 others are as near as itself, the last is dropped.
        itself_Bk = vertex_Bk == torch.arange(len(u_BC), device=u_BC.device)[:, None]
        order_BK = itself_Bk.int().argsort(dim=1, stable=True)[:, : self._k]
        vertex_BK, distance_BK = vertex_Bk.gather(1, order_BK), distance_Bk.gather(1, order_BK)
        spread = spread_of(moments(rows_FC))
        return Neighbours(look_up(index_B, vertex_BK), distance_BK, vertex_BK, rows_BC[:0], spread)


class TableNeighbours(NeighbourSource):
    """The nearest rows of a fixed table, independently for each molecule; used by exported models.

    Args:
        rows_RC: (R, C): embeddings of the reference molecules; kept in float16.
        k: K.

    Raises:
        ValueError: a row of the table is not finite in float16.
    """

    def __init__(self, rows_RC: Tensor, k: int) -> None:
        self._rows_RC, self._k = rows_RC.half(), k
        if not self._rows_RC.isfinite().all():
            raise ValueError(f"rows_RC: {int((~self._rows_RC.isfinite().all(1)).sum())} reference rows are not finite")
        self._candidates = ProductCandidates(self._rows_RC)
        self._spread = spread_of(moments(self._rows_RC))

    def find(self, u_BC: Tensor, index_B: Tensor) -> Neighbours:
        """See `NeighbourSource`; `ids_BK` are row numbers of the table, and `index_B` is ignored."""
        distance_BK, row_BK, _ = nearest(self._candidates, u_BC.detach().half(), self._rows_RC, self._k)
        vertex_BK, used_V = number_vertices(row_BK, row_BK >= 0, len(u_BC))
        return Neighbours(row_BK, distance_BK, vertex_BK, self._rows_RC[used_V], self._spread)


def look_up(table_N: Tensor, row_BK: Tensor) -> Tensor:
    """Returns table[row], and -1 where row is -1."""
    if len(table_N) == 0:  # then every row is -1
        return row_BK.clone()
    return table_N[row_BK.clamp(min=0)].masked_fill(row_BK < 0, -1)


def number_vertices(id_BK: Tensor, chosen_BK: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Numbers the distinct chosen ids from `first` on.

    Returns:
        The number of each chosen id (B, K), -1 for those not chosen; the distinct chosen ids (V,), ascending.
    """
    distinct_V, number = id_BK[chosen_BK].unique(return_inverse=True)
    vertex_BK = torch.full_like(id_BK, -1)
    vertex_BK[chosen_BK] = first + number
    return vertex_BK, distinct_V
