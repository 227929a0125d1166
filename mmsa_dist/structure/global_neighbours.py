"""Neighbours among all training molecules: the bank, the index over it, and the schedule of its rebuilds.

N molecules in the bank, W ranks, L rows of this rank, F of them filled, B molecules in a batch, K neighbours,
V distinct neighbours outside the batch, C width of u.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mmsa_dist.config.schema import Structure
from mmsa_dist.runtime.distributed import gather, rank, world_size
from mmsa_dist.structure import bank
from mmsa_dist.structure.bank import EmbeddingBank
from mmsa_dist.structure.neighbours import NeighbourIndex
from mmsa_dist.structure.sources import BatchNeighbours, Neighbours, NeighbourSource, number_vertices


@dataclass(frozen=True)
class _Pending:
    """An index that is being built."""

    due: int
    """Step at which it takes effect; training waits for it, so that all ranks and resumed runs switch alike."""
    snapshot: tuple[Tensor, Tensor]
    index: Future[NeighbourIndex]


class GlobalNeighbours(NeighbourSource):
    """The nearest of all training molecules, in the bank of all ranks; within the batch until there is an index.

    The index is built from a snapshot of the bank; the rows of the neighbours it finds are the bank's current ones.
    With `refresh_lag`, the index of the snapshot of step s is built in a separate thread, without collectives, and
    searched from step s + `refresh_lag` on; training waits there if it is not ready, and so does a process that exits.

    Args:
        num_molecules: N, molecules in the training split.
        width: C.
        options: section ``model.structure`` of the configuration: K, the schedule and the kind of the index.
        device: where the bank is kept; the device of the process group's collectives.
    """

    def __init__(
        self, num_molecules: int, width: int, options: Structure, *, device: torch.device | str = "cpu"
    ) -> None:
        self.bank = EmbeddingBank(num_molecules, width, rank(), world_size(), device=device)
        self._options = options
        self._build = partial(
            NeighbourIndex,
            kind=options.index,
            recall_target=options.recall_target,
            recall_sample=options.recall_sample,
            k=options.k,
        )
        self._builder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="neighbour-index")
        self._pending: _Pending | None = None
        self._without_index = BatchNeighbours(options.k)
        self._index: NeighbourIndex | None = None
        self._step = 0
        self._recall = torch.nan
        self._spread = torch.zeros((), dtype=torch.float64)

    def find(self, u_BC: Tensor, index_B: Tensor) -> Neighbours:
        """See `NeighbourSource`."""
        if self._index is None:
            return self._without_index.find(u_BC, index_B)
        ids_BK, distance_BK = (t.to(u_BC.device) for t in self._index.search(u_BC.detach(), index_B, self._options.k))
        sorted_B, position_B = index_B.sort(stable=True)
        place_BK = torch.searchsorted(sorted_B, ids_BK).clamp(max=len(index_B) - 1)
        finite_B = u_BC.detach().half().isfinite().all(dim=1)
        fresh_BK = (ids_BK >= 0) & (sorted_B[place_BK] == ids_BK) & finite_B[position_B[place_BK]]
        vertex_BK, stale_V = number_vertices(ids_BK, (ids_BK >= 0) & ~fresh_BK, len(index_B))
        vertex_BK = torch.where(fresh_BK, position_B[place_BK], vertex_BK)
        stale_VC, spread = (t.to(u_BC.device) for t in (self.bank.fetch(stale_V), self._spread))
        return Neighbours(ids_BK, distance_BK, vertex_BK, stale_VC, spread)

    def observe(self, index_B: Tensor, u_BC: Tensor, step: int) -> None:
        """See `NeighbourSource`."""
        self.bank.write(index_B, u_BC, step)
        self._step = step

    def refresh(self, step: int, *, now: bool = False) -> bool:
        """See `NeighbourSource`; measures the recall of a new index when it takes effect.

        Nothing is built while the bank is empty. `now` builds at once and discards an index that is being built.
        """
        changed = False
        if self._pending is not None and (now or step >= self._pending.due):
            pending, self._pending = self._pending, None
            if not now:
                self._use(pending.index.result())
                changed = True
        if not now and (step == 0 or step % self._options.refresh_every):
            return changed
        snapshot = self.bank.snapshot()
        if not int(gather(self.bank.step_L.new_tensor([len(snapshot[0])])).sum()):
            return changed
        if self._options.refresh_lag and not now:
            self._start(snapshot, due=step + self._options.refresh_lag)
            return changed
        self._use(self._build(snapshot))
        return True

    def _start(self, snapshot: tuple[Tensor, Tensor], *, due: int) -> None:
        self._pending = _Pending(due, snapshot, self._builder.submit(self._build, snapshot))

    def _use(self, index: NeighbourIndex) -> None:
        self._index = index
        self._recall = index.recall(self._options.recall_sample, self._options.k)
        self._spread = index.spread()

    def warnings(self) -> list[str]:
        """See `NeighbourSource`: warns if recall at the last rebuild was below its target."""
        if self._index is None or not self._recall < self._options.recall_target:
            return []
        return [
            f"neighbour recall is {self._recall:.3f}, below {self._options.recall_target}: training uses wrong "
            "neighbours; set model.structure.index to flat (exact, slower) or to ivf instead of ivfpq, or use more "
            "ranks"
        ]

    def meters(self) -> dict[str, float]:
        """Returns the metrics of the bank, ``bank/recall`` and ``bank/uncertain``.

        ``bank/recall`` is the share of true neighbours found at the last rebuild (NaN before the first);
        ``bank/uncertain`` counts a rank's searches since then that met more near-equal rows than it may compare.
        """
        uncertain = 0 if self._index is None else self._index.uncertain
        total = gather(self.bank.step_L.new_tensor([uncertain])).sum()
        return {**self.bank.meters(self._step), "bank/recall": self._recall, "bank/uncertain": float(total)}

    def state_dict(self) -> dict[str, Tensor]:
        """See `NeighbourSource`: the bank and, for an exact resume, the snapshots of the indices."""
        state = {f"bank.{name}": tensor for name, tensor in self.bank.state_dict().items()}
        state["step"] = torch.tensor(self._step)
        if self._index is not None:
            state |= {"index.ids": self._index.ids_F, "index.rows": self._index.rows_FC}
            state["index.recall"] = torch.tensor(self._recall, dtype=torch.float64)
            state["index.spread"] = self._spread
        if self._pending is not None:
            ids_F, rows_FC = self._pending.snapshot
            state |= {"pending.ids": ids_F, "pending.rows": rows_FC, "pending.due": torch.tensor(self._pending.due)}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads what `state_dict` returned on this rank and rebuilds the index from its snapshot.

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
        self._index, self._recall, self._pending = None, torch.nan, None
        device = self.bank.device
        if "index.ids" in state:
            self._index = self._build((state["index.ids"].to(device), state["index.rows"].to(device)))
            self._recall, self._spread = float(state["index.recall"]), state["index.spread"].to(device)
        if "pending.ids" in state:
            snapshot = (state["pending.ids"].to(device), state["pending.rows"].to(device))
            self._start(snapshot, due=int(state["pending.due"]))


def reshard(states: Sequence[Mapping[str, Tensor]], rank: int, world: int) -> dict[str, Tensor]:
    """Converts the states of all ranks to that of rank `rank` of another number of ranks, `world`.

    If the search is exact, the neighbours found afterwards are bitwise the same.

    Args:
        states: `GlobalNeighbours.state_dict` of each rank, in any order.
        rank: of the new state.
        world: new number of ranks.

    Raises:
        ValueError: the state of a rank is missing, duplicate or of another run.
    """
    shard = bank.reshard((_section(state, "bank.") for state in states), rank, world)
    new = {f"bank.{name}": tensor for name, tensor in shard.items()} | {"step": states[0]["step"]}
    for snapshot, scalars in (("index", ("recall", "spread")), ("pending", ("due",))):
        if f"{snapshot}.ids" not in states[0]:
            continue
        # From each state its own part, because all of them together need not fit in memory.
        mine = [(state[f"{snapshot}.ids"] % world == rank).nonzero().flatten() for state in states]
        ids, rows = (
            torch.cat([state[f"{snapshot}.{name}"][own] for state, own in zip(states, mine, strict=True)])
            for name in ("ids", "rows")
        )
        order = ids.argsort()
        new |= {f"{snapshot}.ids": ids[order], f"{snapshot}.rows": rows[order]}
        new |= {f"{snapshot}.{scalar}": states[0][f"{snapshot}.{scalar}"] for scalar in scalars}
    return new


def _section(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
