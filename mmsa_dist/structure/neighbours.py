"""The nearest-neighbour index over the bank of all ranks.

Every rank receives all queries and searches the rows that it owns; the candidates are merged by distance, then by id.
With an exact search on each rank, the result is bitwise that of one process that holds all rows.

N molecules in the bank, W ranks, F filled rows of this rank, B queries of this rank, G = W·B queries of all ranks,
K neighbours, C width; Q sampled queries, L inverted lists, R rows to add.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mmsa_dist.runtime.distributed import gather, world_size
from mmsa_dist.runtime.onednn import linear
from mmsa_dist.structure.nearest import Candidates, ProductCandidates, by_distance, centre, moments, nearest, spread_of
from mmsa_dist.structure.routing import swap
from mmsa_dist.structure.sources import look_up

if TYPE_CHECKING:
    import faiss

IndexKind = Literal["auto", "flat", "ivf", "ivfpq"]
FLAT_ROWS = 1 << 20
"""Rows per rank up to which ``auto`` searches all of them."""
IVF_BYTES = 16 << 30
"""Bytes of float32 rows per rank up to which ``auto`` does not compress them."""

_ROWS_PER_ADD = 1 << 16
_QUERIES_PER_PRODUCT = 1 << 10  # their distances to all centroids fit a core's cache
_TRAINING_ROWS_PER_LIST = 39  # FAISS's minimum
# Fewer cannot train the 256 centroids of a code, and are quickly searched.
_MIN_ROWS_FOR_LISTS = 256 * _TRAINING_ROWS_PER_LIST
_PER_NEIGHBOUR_COMPRESSED = 8
_MAX_PROBES = 2048  # FAISS's limit on a GPU


class FlatCandidates:
    """Candidates by exhaustive search in FAISS (float32, on CPU).

    Args:
        rows_FC: (F, C) float16, finite.
    """

    exhaustive, per_neighbour = True, 1

    def __init__(self, rows_FC: Tensor) -> None:
        import faiss  # imported here, because flat search on a GPU does not need it

        self.centre_C = centre(rows_FC)
        self._index = faiss.IndexFlatL2(rows_FC.shape[1])
        for rows in rows_FC.split(_ROWS_PER_ADD):
            self._index.add((rows - self.centre_C).cpu().numpy())

    def __len__(self) -> int:
        return self._index.ntotal

    def __call__(self, query_GC: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Candidates`."""
        return _search(self._index, query_GC, k)


class InvertedLists:
    """Candidates from the lists nearest to a query (FAISS IVF), on the GPU of the rows if FAISS supports it.

    FAISS seeds the training, so the same rows and number of threads give the same lists.

    Args:
        rows_FC: (F, C) float16, finite.
        compressed: product quantization (a byte for about four values) instead of float32.
        recall_target: `probes` is doubled until a sample reaches this recall or a quarter of the lists is searched.
        sample: queries used for this, evenly spaced over the rows.
        k: neighbours used for this.
    """

    exhaustive = False

    def __init__(self, rows_FC: Tensor, *, compressed: bool, recall_target: float, sample: int, k: int) -> None:
        import faiss

        rows, width = rows_FC.shape
        self.centre_C = centre(rows_FC)
        self.per_neighbour = _PER_NEIGHBOUR_COMPRESSED if compressed else 1
        self.lists = max(1, min(round(4 * math.sqrt(rows)), rows // _TRAINING_ROWS_PER_LIST))
        quantizer = faiss.IndexFlatL2(width)
        index: Any  # FAISS's index types share no base class with nprobe
        if compressed:
            pieces = max(n for n in range(1, max(1, width // 4) + 1) if width % n == 0)
            index = faiss.IndexIVFPQ(quantizer, width, self.lists, pieces, 8)
        else:
            index = faiss.IndexIVFFlat(quantizer, width, self.lists)
        sample_rows = evenly_spaced(rows, max(self.lists * _TRAINING_ROWS_PER_LIST, _MIN_ROWS_FOR_LISTS))
        index.train(self._centred(rows_FC[sample_rows]))
        if rows_FC.is_cuda and gpu_faiss():
            self._resources = faiss.StandardGpuResources()  # must outlive the index
            index = faiss.index_cpu_to_gpu(self._resources, rows_FC.get_device(), index)
        for part in rows_FC.split(_ROWS_PER_ADD):
            index.add(self._centred(part))
        self._index = index
        self._lists = None if rows_FC.is_cuda and gpu_faiss() else _NearestLists(quantizer)
        self.probes = self._tune_probes(rows_FC, recall_target, sample, k)

    def __len__(self) -> int:
        return self._index.ntotal

    def __call__(self, query_GC: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Candidates`."""
        device = query_GC.device
        if self._lists is None:
            return _search(self._index, query_GC, k)
        distance_Gp, list_Gp = self._lists(query_GC.cpu(), self._index.nprobe)
        order_G = list_Gp[:, 0].argsort()  # a list is read once for all queries that start with it
        query_GC, place_G = query_GC.cpu()[order_G], order_G.argsort()
        found = self._index.search_preassigned(
            query_GC.numpy(), k, list_Gp[order_G].numpy(), distance_Gp[order_G].numpy()
        )
        distance_Gk, row_Gk = (torch.from_numpy(part)[place_G].to(device) for part in found)
        return distance_Gk, row_Gk

    def _centred(self, rows_RC: Tensor) -> Any:
        return (rows_RC - self.centre_C).cpu().numpy()

    def _tune_probes(self, rows_FC: Tensor, recall_target: float, sample: int, k: int) -> int:
        own_Q = evenly_spaced(len(rows_FC), sample).to(rows_FC.device)
        query_QC = rows_FC[own_Q]
        wanted = min(k + 1, len(rows_FC))  # one of them is the query itself, which is no neighbour
        farthest_Q1 = nearest(ProductCandidates(rows_FC, resident=False), query_QC, rows_FC, wanted).distance_Gk[:, -1:]
        probes, most = 1, max(1, min(self.lists // 4, _MAX_PROBES))
        while True:
            self._index.nprobe = probes
            found_Qk, row_Qk, _ = nearest(self, query_QC, rows_FC, wanted)
            hits_Q = ((found_Qk <= farthest_Q1) & (row_Qk != own_Q[:, None])).sum(dim=1).clamp(max=wanted - 1)
            if probes == most or float(hits_Q.sum()) >= recall_target * len(own_Q) * (wanted - 1):
                return probes
            probes = min(2 * probes, most)


class _NearestLists:
    """Finds the lists nearest to a query on a CPU: half of the time of a FAISS search at one probe, a fifth by oneDNN.

    Args:
        quantizer: holds the centroids of the lists.
    """

    def __init__(self, quantizer: faiss.IndexFlatL2) -> None:
        centre_LC = torch.from_numpy(quantizer.reconstruct_n(0, quantizer.ntotal))
        self._square_L = centre_LC.square().sum(dim=1)
        self._minus_twice_LC = -2 * centre_LC

    def __call__(self, query_GC: Tensor, probes: int) -> tuple[Tensor, Tensor]:
        """Returns squared distances (G, probes), ascending, and numbers of lists for (G, C) float32 queries."""
        nearest_lists = [
            linear(query_bC, self._minus_twice_LC, self._square_L).topk(probes, dim=1, largest=False)
            for query_bC in query_GC.split(_QUERIES_PER_PRODUCT)
        ]
        distance_Gp, list_Gp = (torch.cat(part) for part in zip(*nearest_lists, strict=True))
        return distance_Gp + query_GC.square().sum(dim=1, keepdim=True), list_Gp


def gpu_faiss() -> bool:
    """Returns whether FAISS is installed, supports GPUs and finds one."""
    try:
        import faiss
    except ModuleNotFoundError:
        return False
    return bool(faiss.get_num_gpus() > 0)


def evenly_spaced(rows: int, sample: int) -> Tensor:
    """Returns up to `sample` distinct row numbers spread over 0..rows-1, ascending, int64."""
    return torch.linspace(0, rows - 1, min(sample, rows), dtype=torch.float64).long()


def make_candidates(rows_FC: Tensor, kind: IndexKind, *, recall_target: float, sample: int, k: int) -> Candidates:
    """Returns the search of type `kind`; ``auto`` depends on the rows of this rank (docs/scale.md, Neighbours).

    ``auto`` is exhaustive up to `FLAT_ROWS` rows, then IVF, compressed if float32 would take more than `IVF_BYTES`. On
    a GPU, exhaustive search is a product in torch, which ``auto`` uses at any size if FAISS finds no GPU.
    """
    rows, width = rows_FC.shape
    if kind == "auto":
        if rows <= FLAT_ROWS or (rows_FC.is_cuda and not gpu_faiss()):
            kind = "flat"
        else:
            kind = "ivf" if rows * width * 4 <= IVF_BYTES else "ivfpq"
    if kind == "flat" or rows < _MIN_ROWS_FOR_LISTS:
        return ProductCandidates(rows_FC) if rows_FC.is_cuda else FlatCandidates(rows_FC)
    return InvertedLists(rows_FC, compressed=kind == "ivfpq", recall_target=recall_target, sample=sample, k=k)


def _search(index: faiss.Index, query_GC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distance_Gk, row_Gk = (
        torch.from_numpy(part).to(query_GC.device) for part in index.search(query_GC.cpu().numpy(), k)
    )
    return distance_Gk, row_Gk


class NeighbourIndex:
    """A snapshot of the filled rows of the bank that answers nearest-neighbour queries.

    `search`, `recall` and `spread` are collective: every rank must call them at the same time, with equally many
    queries. Building is not and may run in another thread.

    Args:
        snapshot: ids_F (F,) int64, ascending, molecules whose rows this rank owns; rows_FC (F, C) float16, finite,
            their embeddings.
        kind: of search; see `make_candidates`.
        recall_target: to which an approximate search is tuned on this rank's rows.
        recall_sample: queries used for tuning.
        k: neighbours used for tuning.
    """

    def __init__(
        self,
        snapshot: tuple[Tensor, Tensor],
        *,
        kind: IndexKind = "flat",
        recall_target: float = 1.0,
        recall_sample: int = 256,
        k: int = 16,
    ) -> None:
        ids_F, rows_FC = snapshot
        self.ids_F, self.rows_FC = ids_F, rows_FC
        self.uncertain = 0
        """Queries so far with more near-equal rows on this rank than `nearest.MAX_CANDIDATES`: the order among
        those may depend on the number of ranks."""
        self.candidates = make_candidates(rows_FC, kind, recall_target=recall_target, sample=recall_sample, k=k)
        """The search over this rank's rows."""

    @property
    def exhaustive(self) -> bool:
        """Whether this rank's search misses nothing."""
        return self.candidates.exhaustive

    def search(self, query_BC: Tensor, index_B: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns the k nearest molecules of all ranks to each query, itself excluded (collective).

        Distances are between float16 values; ties are ordered by id.

        Args:
            query_BC: (B, C) floating point; a non-finite query finds nothing.
            index_B: (B,) int64: the molecule of each query, which is not its own neighbour; -1 for none.
            k: K.

        Returns:
            ids (B, K) int64, -1 if the bank holds fewer, and squared Euclidean distances (B, K) float64,
            infinite there; on the device of the bank.
        """
        ids_BK, distance_BK, uncertain = self._search(self.candidates, query_BC, index_B, k)
        self.uncertain += uncertain
        return ids_BK, distance_BK

    def recall(self, sample: int, k: int) -> float:
        """Returns the share of true neighbours that `search` finds for a sample of the bank (collective).

        The reference is an exhaustive search by matrix product in torch. A neighbour counts as found if it is no
        farther than the true k-th, so that ties do not count as misses.

        Args:
            sample: queries over all ranks, evenly spaced over the rows of each.
            k: K.

        Returns:
            A number in [0, 1]; NaN if the bank holds fewer than two rows.
        """
        queries = -(-sample // world_size())
        if len(self.ids_F):
            chosen = torch.linspace(0, len(self.ids_F) - 1, queries, dtype=torch.float64).long().to(self.ids_F.device)
            query_BC, index_B = self.rows_FC[chosen], self.ids_F[chosen]
        else:  # this rank has no queries, but must take part in the collectives
            query_BC = self.rows_FC.new_full((queries, self.rows_FC.shape[1]), torch.nan)
            index_B = self.ids_F.new_full((queries,), -1)
        exact = ProductCandidates(self.rows_FC, resident=False)
        true_ids, true_BK, _ = self._search(exact, query_BC, index_B, k)
        _, found_BK, _ = self._search(self.candidates, query_BC, index_B, k)
        exists_BK = true_ids >= 0
        farthest_B1 = torch.where(exists_BK, true_BK, 0).amax(dim=1, keepdim=True)
        found = ((found_BK <= farthest_B1) & exists_BK).sum()
        hits, total = gather(torch.stack([found, exists_BK.sum()])[None]).sum(dim=0).tolist()
        return hits / total if total else torch.nan

    def spread(self) -> Tensor:
        """Returns the mean squared distance of two molecules of all ranks, () float64 (collective).

        0 if there are fewer than two.
        """
        return spread_of(gather(moments(self.rows_FC)[None]).sum(dim=0))

    @torch.no_grad()
    def _search(self, candidates: Candidates, query_BC: Tensor, index_B: Tensor, k: int) -> tuple[Tensor, Tensor, int]:
        """Returns what `search` does, and how many queries were uncertain on this rank."""
        device = self.rows_FC.device
        query_GC = gather(query_BC.to(device, torch.float16))
        index_G = gather(index_B.to(device))
        # One more than K, because one of them may be the molecule itself.
        distance_Gk, row_Gk, uncertain = nearest(candidates, query_GC, self.rows_FC, k + 1)
        id_Gk = look_up(self.ids_F, row_Gk)
        distance_Gk, id_Gk = _without_itself(distance_Gk, id_Gk, index_G)

        shape = (world_size(), len(query_BC), k + 1)
        distance_WBk, id_WBk = swap(distance_Gk.view(shape)), swap(id_Gk.view(shape))
        distance_BK, id_BK = by_distance(*(t.transpose(0, 1).flatten(1) for t in (distance_WBk, id_WBk)))
        return id_BK[:, :k].contiguous(), distance_BK[:, :k].contiguous(), uncertain


def _without_itself(distance_Gk: Tensor, id_Gk: Tensor, index_G: Tensor) -> tuple[Tensor, Tensor]:
    """Removes the molecule of each query from its own results; the others keep their order."""
    itself_Gk = id_Gk == index_G[:, None]
    last = id_Gk.shape[1] - 1
    column_Gk = torch.arange(last + 1, device=id_Gk.device) + itself_Gk.cummax(dim=1).values.long()
    column_Gk = column_Gk.clamp(max=last)
    distance_Gk, id_Gk = distance_Gk.gather(1, column_Gk), id_Gk.gather(1, column_Gk)
    found_G = itself_Gk.any(dim=1)
    distance_Gk[found_G, last], id_Gk[found_G, last] = torch.inf, -1
    return distance_Gk, id_Gk
