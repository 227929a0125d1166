"""The bank: the latest embedding of every training molecule, distributed over the ranks.

N molecules in the bank, W ranks, L rows of this rank, F of them filled, B molecules in a batch, M rows received by this
rank, V molecules requested, C width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mmsa_dist.runtime.distributed import gather
from mmsa_dist.structure.routing import Route


class EmbeddingBank:
    """One float16 row per molecule of the manifest and the step at which it was written; no gradient.

    Molecule i is row i // W of rank i % W. A row that was never written is NaN and its step is -1, so that it
    cannot be mistaken for an embedding. `write`, `fetch` and `meters` are collective: every rank must call them at the
    same time, with any number of molecules of its own.

    Args:
        num_molecules: N, molecules in the training split.
        width: C.
        rank: of this process.
        world: W, number of processes; the rows are distributed by molecule number.
        device: where rows are kept; the device of the process group's collectives.
    """

    def __init__(
        self, num_molecules: int, width: int, rank: int, world: int, *, device: torch.device | str = "cpu"
    ) -> None:
        self.num_molecules, self.width, self.rank, self.world = num_molecules, width, rank, world
        rows = _rows_of_rank(num_molecules, rank, world)
        self.rows_LC = torch.full((rows, width), torch.nan, dtype=torch.float16, device=device)
        self.step_L = torch.full((rows,), -1, dtype=torch.int64, device=device)
        self.refused = 0
        """Rows that this rank has refused so far because they were not finite in float16."""

    @property
    def device(self) -> torch.device:
        """Where rows are kept."""
        return self.rows_LC.device

    @torch.no_grad()
    def write(self, index_B: Tensor, u_BC: Tensor, step: int) -> None:
        """Stores the embeddings of a batch on the ranks that own them (collective).

        If a molecule occurs several times, the last wins: that of the highest rank, then of the last position.
        A row that is not finite in float16 is refused and counted: the bank keeps its old one.

        Args:
            index_B: (B,) int64: molecule numbers in the manifest; -1 is not stored.
            u_BC: (B, C) floating point.
            step: optimizer step at which they were computed.

        Raises:
            ValueError: `u_BC` does not have the bank's width, or an index is not in the manifest.
        """
        if u_BC.shape != (len(index_B), self.width):
            raise ValueError(f"u_BC: got shape {tuple(u_BC.shape)}, expected ({len(index_B)}, {self.width})")
        self._check(index_B, lowest=-1)
        index_B, u_BC = index_B.to(self.device), u_BC.detach().to(self.device, torch.float16)
        finite_B = u_BC.isfinite().all(dim=1)
        inside_B = index_B >= 0
        self.refused += int((inside_B & ~finite_B).sum())
        index_B, u_BC = index_B[inside_B & finite_B], u_BC[inside_B & finite_B]

        route = Route(index_B % self.world)
        local_M, rows_MC = route.send(index_B) // self.world, route.send(u_BC)
        # Rows arrive sorted by rank and position; which of two duplicates index_put keeps is undefined.
        local_M, order_M = local_M.sort(stable=True)
        last_M = torch.ones_like(local_M, dtype=torch.bool)
        last_M[:-1] = local_M[1:] != local_M[:-1]
        self.rows_LC[local_M[last_M]] = rows_MC[order_M[last_M]]
        self.step_L[local_M[last_M]] = step

    @torch.no_grad()
    def fetch(self, ids_V: Tensor) -> Tensor:
        """Returns the rows of the molecules `ids_V` from their owners, (V, C) float16 (collective).

        Args:
            ids_V: (V,) int64 in 0..N-1, in any order; the rows come back on the bank's device.

        Raises:
            ValueError: an id is not in the manifest.
        """
        self._check(ids_V, lowest=0)
        ids_V = ids_V.to(self.device)
        route = Route(ids_V % self.world)
        return route.send_back(self.rows_LC[route.send(ids_V) // self.world])

    def snapshot(self) -> tuple[Tensor, Tensor]:
        """Returns a copy of the rows of this rank that have been written.

        Molecule numbers (F,) int64, ascending, and rows (F, C) float16.
        """
        local_F = (self.step_L >= 0).nonzero().flatten()
        return local_F * self.world + self.rank, self.rows_LC[local_F]

    @torch.no_grad()
    def meters(self, step: int) -> dict[str, float]:
        """Returns metrics of how full and how old the bank of all ranks is at `step` (collective).

        ``bank/filled`` is a share of N, ``bank/age_mean`` and ``bank/age_max`` are in steps over the filled rows
        (NaN if there are none), ``bank/refused`` counts the rows refused so far.
        """
        age_F = (step - self.step_L[self.step_L >= 0]).double()
        oldest = age_F.max() if len(age_F) else age_F.new_tensor(-torch.inf)
        own = torch.stack([age_F.new_tensor(len(age_F)), age_F.sum(), oldest, age_F.new_tensor(self.refused)])
        filled, ages, oldest_of, refused = gather(own[None]).unbind(dim=1)
        total = float(filled.sum())
        return {
            "bank/filled": total / max(self.num_molecules, 1),
            "bank/age_mean": float(ages.sum()) / total if total else torch.nan,
            "bank/age_max": float(oldest_of.max()) if total else torch.nan,
            "bank/refused": float(refused.sum()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Returns this rank's shard as plain tensors; `reshard` converts shards to another number of ranks."""
        return {
            "rows": self.rows_LC,
            "step": self.step_L,
            "refused": torch.tensor(self.refused),
            "shard": torch.tensor([self.num_molecules, self.rank, self.world]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads the shard that `state_dict` returned on this rank.

        Raises:
            ValueError: the shard is that of another rank, number of ranks or manifest.
        """
        own = self.state_dict()
        if state["shard"].tolist() != own["shard"].tolist() or state["rows"].shape != own["rows"].shape:
            raise ValueError(
                f"bank shard: got {_describe(state)}, expected {_describe(own)}; for another number of ranks use "
                "mmsa_dist.structure.bank.reshard, for other molecules or another width start a new bank"
            )
        self.rows_LC.copy_(state["rows"])
        self.step_L.copy_(state["step"])
        self.refused = int(state["refused"])

    def _check(self, index: Tensor, lowest: int) -> None:
        if len(index) and not (lowest <= int(index.min()) and int(index.max()) < self.num_molecules):
            raise ValueError(
                f"index: got values from {int(index.min())} to {int(index.max())}, expected {lowest} to "
                f"{self.num_molecules - 1}; the bank and the batch must come from the same manifest"
            )


def reshard(shards: Iterable[Mapping[str, Tensor]], rank: int, world: int) -> dict[str, Tensor]:
    """Converts the states of all ranks to that of rank `rank` of another number of ranks, `world`.

    Args:
        shards: `EmbeddingBank.state_dict` of each rank, in any order; consumed one at a time, so that an iterator
            needs the memory of one.
        rank: of the new shard.
        world: new number of ranks.

    Raises:
        ValueError: a shard is missing, duplicate or of another bank.
    """
    rows_LC = step_L = torch.empty(0)
    seen: set[int] = set()
    refused, num_molecules, old_world = 0, -1, -1
    for shard in shards:
        num, old_rank, old = shard["shard"].tolist()
        if not seen:
            num_molecules, old_world = num, old
            rows = _rows_of_rank(num, rank, world)
            rows_LC = shard["rows"].new_full((rows, shard["rows"].shape[1]), torch.nan)
            step_L = shard["step"].new_full((rows,), -1)
        if (num, old) != (num_molecules, old_world) or old_rank in seen:
            raise ValueError(
                f"bank shards: {_describe(shard)} does not fit with those of ranks {sorted(seen)} of {old_world}"
            )
        seen.add(old_rank)
        ids = old_rank + old * torch.arange(len(shard["step"]))
        mine = ids % world == rank
        rows_LC[ids[mine] // world] = shard["rows"][mine]
        step_L[ids[mine] // world] = shard["step"][mine]
        refused += int(shard["refused"])
    if not seen or len(seen) != old_world:
        raise ValueError(f"bank shards: got ranks {sorted(seen)}, expected all of 0..{old_world - 1}")
    return {
        "rows": rows_LC,
        "step": step_L,
        # Only the sum over ranks is meaningful, so one rank keeps it.
        "refused": torch.tensor(refused if rank == 0 else 0),
        "shard": torch.tensor([num_molecules, rank, world]),
    }


def _rows_of_rank(num_molecules: int, rank: int, world: int) -> int:
    return len(range(rank, num_molecules, world))


def _describe(state: Mapping[str, Tensor]) -> str:
    num_molecules, rank, world = state["shard"].tolist()
    return f"rank {rank} of {world} with {num_molecules} molecules of width {state['rows'].shape[1]}"
