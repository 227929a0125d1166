"""Neighbours among all training molecules: the bank, the index over it, and the schedule that renews the index.

N molecules in the bank, W ranks, B molecules in a batch, K neighbours, V distinct neighbours outside the batch,
C width of u.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmsa_dist.runtime.distributed import gather, rank, world_size
from mmsa_dist.structure import bank
from mmsa_dist.structure.bank import EmbeddingBank
from mmsa_dist.structure.neighbours import NeighbourIndex
from mmsa_dist.structure.sources import BatchNeighbours, Neighbours, NeighbourSource, number_vertices


class GlobalNeighbours(NeighbourSource):
    """The nearest of all training molecules, in the bank of all ranks; within the batch until there is an index.

    The index is a snapshot of the bank; the rows of the neighbours that it names are those that the bank has now.

    Args:
        num_molecules: N, molecules in the training split.
        width: C.
        k: K.
        refresh_every: steps between two rebuilds of the index.
        recall_sample: queries on which recall is measured at each rebuild.
        device: where the bank is kept; the device that the process group works on.
    """

    def __init__(
        self,
        num_molecules: int,
        width: int,
        k: int,
        *,
        refresh_every: int,
        recall_sample: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.bank = EmbeddingBank(num_molecules, width, rank(), world_size(), device=device)
        self._k, self._refresh_every, self._recall_sample = k, refresh_every, recall_sample
        self._until_warm = BatchNeighbours(k)
        self._index: NeighbourIndex | None = None
        self._step = 0
        self._recall = torch.nan

    def find(self, u_BC: Tensor, index_B: Tensor) -> Neighbours:
        """See `NeighbourSource`."""
        if self._index is None:
            return self._until_warm.find(u_BC, index_B)
        ids_BK, distance_BK = (t.to(u_BC.device) for t in self._index.search(u_BC.detach(), index_B, self._k))
        sorted_B, position_B = index_B.sort(stable=True)
        place_BK = torch.searchsorted(sorted_B, ids_BK).clamp(max=len(index_B) - 1)
        fresh_BK = (ids_BK >= 0) & (sorted_B[place_BK] == ids_BK)
        vertex_BK, stale_V = number_vertices(ids_BK, (ids_BK >= 0) & ~fresh_BK, len(index_B))
        vertex_BK = torch.where(fresh_BK, position_B[place_BK], vertex_BK)
        return Neighbours(ids_BK, distance_BK, vertex_BK, self.bank.fetch(stale_V).to(u_BC.device))

    def observe(self, index_B: Tensor, u_BC: Tensor, step: int) -> None:
        """See `NeighbourSource`."""
        self.bank.write(index_B, u_BC, step)
        self._step = step

    def refresh(self, step: int, *, now: bool = False) -> bool:
        """See `NeighbourSource`; also measures recall. Nothing is built while no rank has a row."""
        if not now and (step == 0 or step % self._refresh_every):
            return False
        index = NeighbourIndex.of_bank(self.bank)
        if not int(gather(self.bank.step_L.new_tensor([len(index.ids_F)])).sum()):
            return False
        self._index = index
        self._recall = index.recall(self._recall_sample, self._k)
        return True

    def meters(self) -> dict[str, float]:
        """Returns those of the bank, ``bank/recall`` and ``bank/uncertain``.

        ``bank/recall`` is the share of true neighbours found at the last rebuild (NaN before the first);
        ``bank/uncertain`` counts searches of a rank since then that met more near-equal rows than it may compare.
        """
        uncertain = 0 if self._index is None else self._index.uncertain
        total = gather(self.bank.step_L.new_tensor([uncertain])).sum()
        return {**self.bank.meters(self._step), "bank/recall": self._recall, "bank/uncertain": float(total)}

    def state_dict(self) -> dict[str, Tensor]:
        """See `NeighbourSource`: the bank and, for an exact resume, the snapshot that the index was built from."""
        state = {f"bank.{name}": tensor for name, tensor in self.bank.state_dict().items()}
        state["step"] = torch.tensor(self._step)
        if self._index is not None:
            state |= {"index.ids": self._index.ids_F, "index.rows": self._index.rows_FC}
            state["index.recall"] = torch.tensor(self._recall, dtype=torch.float64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state_dict` gave to this rank and rebuilds the index from its snapshot.

        Raises:
            ValueError: the state is that of another source, rank, number of ranks or manifest.
        """
        if "bank.rows" not in state:
            raise ValueError(
                f"neighbour state: expected a bank, but the checkpoint has {sorted(state)}; set "
                "model.structure.neighbours to what it was when the checkpoint was made"
            )
        self.bank.load_state_dict(_section(state, "bank."))
        self._step = int(state["step"])
        self._index, self._recall = None, torch.nan
        if "index.ids" in state:
            device = self.bank.device
            self._index = NeighbourIndex(state["index.ids"].to(device), state["index.rows"].to(device))
            self._recall = float(state["index.recall"])


def reshard(states: Sequence[Mapping[str, Tensor]], rank: int, world: int) -> dict[str, Tensor]:
    """Returns the state of rank `rank` of `world` ranks from the states of all ranks of another number.

    Neighbours found afterwards are the same, bit for bit.

    Args:
        states: what `GlobalNeighbours.state_dict` gave on each rank, in any order.
        rank: of the new state.
        world: new number of ranks.

    Raises:
        ValueError: the state of a rank is missing, comes twice or belongs to another run.
    """
    shard = bank.reshard((_section(state, "bank.") for state in states), rank, world)
    new = {f"bank.{name}": tensor for name, tensor in shard.items()} | {"step": states[0]["step"]}
    if "index.ids" in states[0]:
        ids = torch.cat([state["index.ids"] for state in states])
        rows = torch.cat([state["index.rows"] for state in states])
        mine = (ids % world == rank).nonzero().flatten()
        mine = mine[ids[mine].argsort()]
        new |= {"index.ids": ids[mine], "index.rows": rows[mine], "index.recall": states[0]["index.recall"]}
    return new


def _section(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
