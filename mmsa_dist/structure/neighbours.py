"""The index of nearest neighbours over the bank of all ranks.

A query travels to every rank, each searches the rows that it owns, and the candidates are merged by distance and
then by id: with an exact search on each rank the result is that of one process that holds all rows, bit for bit.

N molecules in the bank, W ranks, F filled rows of this rank, B queries of this rank, G = W·B queries of all ranks,
K neighbours, C width.
"""

from __future__ import annotations

import faiss
import torch
from torch import Tensor

from mmsa_dist.runtime.distributed import gather, world_size
from mmsa_dist.structure.bank import EmbeddingBank
from mmsa_dist.structure.nearest import Candidates, ProductCandidates, by_distance, centre, nearest
from mmsa_dist.structure.routing import swap
from mmsa_dist.structure.sources import look_up

_ROWS_PER_ADD = 1 << 16


class FlatCandidates:
    """Candidates by exhaustive search in FAISS (float32, on CPU).

    Args:
        rows_FC: (F, C) float16, finite.
    """

    def __init__(self, rows_FC: Tensor) -> None:
        self.centre_C = centre(rows_FC)
        self._index = faiss.IndexFlatL2(rows_FC.shape[1])
        for rows in rows_FC.split(_ROWS_PER_ADD):
            self._index.add((rows - self.centre_C).cpu().numpy())

    def __len__(self) -> int:
        return self._index.ntotal

    def __call__(self, query_GC: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Candidates`."""
        distance_Gk, row_Gk = self._index.search(query_GC.cpu().numpy(), k)
        device = query_GC.device
        return torch.from_numpy(distance_Gk).to(device), torch.from_numpy(row_Gk).to(device)


class NeighbourIndex:
    """A snapshot of the filled rows of the bank that answers nearest-neighbour queries.

    `search` and `recall` are collective: every rank must call them at the same time, with equally many queries.

    Args:
        ids_F: (F,) int64, ascending: molecules whose rows this rank owns.
        rows_FC: (F, C) float16, finite: their embeddings.
    """

    def __init__(self, ids_F: Tensor, rows_FC: Tensor) -> None:
        self.ids_F, self.rows_FC = ids_F, rows_FC
        self.uncertain = 0
        """Queries so far with more near-equal rows on this rank than `nearest.MAX_CANDIDATES`: the order among
        those may depend on the number of ranks."""
        self._candidates = FlatCandidates(rows_FC)

    @classmethod
    def of_bank(cls, bank: EmbeddingBank) -> NeighbourIndex:
        """Takes a snapshot of the rows of `bank` that have been written."""
        local_F = (bank.step_L >= 0).nonzero().flatten()
        return cls(local_F * bank.world + bank.rank, bank.rows_LC[local_F])

    def search(self, query_BC: Tensor, index_B: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns the k nearest molecules of all ranks to each query, itself excluded (collective).

        Distances are between float16 values; equal distances go by id.

        Args:
            query_BC: (B, C) floating point; one that is not finite finds nothing.
            index_B: (B,) int64: the molecule of each query, which is not its own neighbour; -1 for none.
            k: K.

        Returns:
            ids (B, K) int64, -1 where the bank holds fewer, and squared Euclidean distances (B, K) float64,
            infinite there; on the device of the bank.
        """
        return self._search(self._candidates, query_BC, index_B, k)

    def recall(self, sample: int, k: int) -> float:
        """Returns the share of true neighbours that `search` finds for a sample of the bank (collective).

        The truth is an exhaustive search by matrix product in torch. A neighbour counts as found if it is no
        farther than the true k-th, so that equal distances cannot be counted as misses.

        Args:
            sample: queries over all ranks, evenly spaced over the rows of each.
            k: K.

        Returns:
            A number in [0, 1]; NaN where the bank holds no two rows.
        """
        queries = -(-sample // world_size())
        if len(self.ids_F):
            chosen = torch.linspace(0, len(self.ids_F) - 1, queries, dtype=torch.float64).long().to(self.ids_F.device)
            query_BC, index_B = self.rows_FC[chosen], self.ids_F[chosen]
        else:  # this rank has nothing to ask, but must take part in the collectives
            query_BC = self.rows_FC.new_full((queries, self.rows_FC.shape[1]), torch.nan)
            index_B = self.ids_F.new_full((queries,), -1)
        true_ids, true_BK = self._search(ProductCandidates(self.rows_FC), query_BC, index_B, k)
        _, found_BK = self.search(query_BC, index_B, k)
        exists_BK = true_ids >= 0
        farthest_B1 = torch.where(exists_BK, true_BK, 0).amax(dim=1, keepdim=True)
        found = ((found_BK <= farthest_B1) & exists_BK).sum()
        hits, total = gather(torch.stack([found, exists_BK.sum()])[None]).sum(dim=0).tolist()
        return hits / total if total else torch.nan

    @torch.no_grad()
    def _search(self, candidates: Candidates, query_BC: Tensor, index_B: Tensor, k: int) -> tuple[Tensor, Tensor]:
        device = self.rows_FC.device
        query_GC = gather(query_BC.to(device, torch.float16))
        index_G = gather(index_B.to(device))
        # One more than K, because one of them may be the molecule itself.
        distance_Gk, row_Gk, uncertain = nearest(candidates, query_GC, self.rows_FC, k + 1)
        self.uncertain += uncertain
        id_Gk = look_up(self.ids_F, row_Gk)
        itself_Gk = id_Gk == index_G[:, None]
        distance_Gk = distance_Gk.masked_fill(itself_Gk, torch.inf)
        id_Gk = id_Gk.masked_fill(itself_Gk, -1)

        shape = (world_size(), len(query_BC), k + 1)
        distance_WBk, id_WBk = swap(distance_Gk.view(shape)), swap(id_Gk.view(shape))
        distance_BK, id_BK = by_distance(*(t.transpose(0, 1).flatten(1) for t in (distance_WBk, id_WBk)))
        return id_BK[:, :k].contiguous(), distance_BK[:, :k].contiguous()
