"""Exact nearest rows, bitwise the same on every rank, whatever arithmetic finds the candidates.

A fast search (a matrix product, FAISS) computes |q|² + |x|² − 2<q, x> in float32: it misorders rows of nearly equal
distance, differently for every shape and shard. Here it only proposes candidates. Their distances are recomputed
between the float16 values, in one fixed order, and a bound on the rounding errors of the fast search decides whether
a row that it did not propose could be nearer; if so, more candidates are fetched.

G queries, F rows to search, R of a part of them, k neighbours, C width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmsa_dist.runtime.onednn import linear

MAX_CANDIDATES = 4096
"""Most candidates fetched per query; more are needed only if thousands of rows are almost the same."""

_SPARE = 8  # candidates beyond k that the first search fetches: enough for nearly all queries
_BLOCK = 1 << 18  # values gathered at a time to compute distances: they fit a core's cache
_ROWS_PER_PRODUCT = 1 << 16
_QUERIES_PER_PRODUCT = 1 << 10  # 256 MB of float32 products at a time, whatever the numbers of queries and rows


class Candidates(Protocol):
    """A search over F centred rows."""

    centre_C: Tensor
    """(C,) float32, subtracted from rows and queries: distances stay, and rounding errors shrink with the norms."""
    exhaustive: bool
    """Whether it compares a query with every row and is exact up to float32 rounding. Only then can it be proved that
    no row was missed; other searches run once, and their recall has to be measured."""
    per_neighbour: int
    """Candidates to fetch per neighbour, if not exhaustive: more if the distances are coarse."""

    def __len__(self) -> int:
        """Returns F."""
        ...

    def __call__(self, query_GC: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns k <= F squared distances (G, k), ascending, and rows (G, k) for centred (G, C) float32 queries.

        A row is -1 where a non-exhaustive search found fewer.
        """
        ...


class ProductCandidates:
    """Candidates by matrix product and top-k in torch, on the device of the rows.

    Args:
        rows_FC: (F, C) float16, finite.
        resident: whether to keep a centred copy in float32 (in float64 if float32 products have reduced precision),
            two or four times the size of the rows. Without it parts are converted anew at each search, which is for
            few searches.
    """

    exhaustive, per_neighbour = True, 1

    def __init__(self, rows_FC: Tensor, *, resident: bool = True) -> None:
        self.centre_C = centre(rows_FC)
        # Reduced precision of float32 products, which users may choose for training, would violate the bound.
        full = torch.get_float32_matmul_precision() == "highest"
        self._dtype = torch.float32 if full else torch.float64
        self._rows_FC, self._resident = rows_FC, resident
        if resident:
            self._rows_FC = torch.empty_like(rows_FC, dtype=self._dtype)
            for wide_RC, part_RC in zip(_parts(self._rows_FC), _parts(rows_FC), strict=True):
                wide_RC.copy_(self._centred(part_RC))
        self._square_F = torch.cat([part.square().sum(dim=1) for part in self._centred_parts()])

    def __len__(self) -> int:
        return len(self._rows_FC)

    def __call__(self, query_GC: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Candidates`."""
        parts = [self._search(query_bC, k) for query_bC in query_GC.split(_QUERIES_PER_PRODUCT)]
        distance_Gk, row_Gk = (torch.cat(part) for part in zip(*parts, strict=True))
        return distance_Gk, row_Gk

    def _search(self, query_GC: Tensor, k: int) -> tuple[Tensor, Tensor]:
        query_GC = query_GC.to(self._dtype)
        best_Gk = query_GC.new_empty(len(query_GC), 0)
        row_Gk = torch.empty(len(query_GC), 0, dtype=torch.int64, device=query_GC.device)
        with torch.autocast(query_GC.device.type, enabled=False):
            for number, part_RC in enumerate(self._centred_parts()):
                start = number * _ROWS_PER_PRODUCT
                # |q|² is the same for every row of a query; it is added at the end.
                part_GR = linear(-2 * query_GC, part_RC, self._square_F[start : start + len(part_RC)])
                part_Gk, found_Gk = part_GR.topk(min(k, len(part_RC)), largest=False)
                best_Gk, row_Gk = torch.cat([best_Gk, part_Gk], 1), torch.cat([row_Gk, found_Gk + start], 1)
                best_Gk, kept_Gk = best_Gk.topk(min(k, best_Gk.shape[1]), largest=False)
                row_Gk = row_Gk.gather(1, kept_Gk)
        return best_Gk + query_GC.square().sum(dim=1, keepdim=True), row_Gk

    def _centred_parts(self) -> Iterator[Tensor]:
        for part_RC in _parts(self._rows_FC):
            yield part_RC if self._resident else self._centred(part_RC)

    def _centred(self, rows_RC: Tensor) -> Tensor:
        return (rows_RC - self.centre_C).to(self._dtype)


class Nearest(NamedTuple):
    """Nearest rows of G queries, sorted by distance, then by row number."""

    distance_Gk: Tensor
    """(G, k) float64, squared Euclidean; infinite if there are fewer than k rows."""
    row_Gk: Tensor
    """(G, k) int64; -1 if there are fewer than k rows."""
    uncertain: int
    """Queries for which `MAX_CANDIDATES` did not suffice to prove that no other row is as near."""


@torch.no_grad()
def nearest(candidates: Candidates, query_GC: Tensor, rows_FC: Tensor, k: int) -> Nearest:
    """Returns the k nearest rows of each query; ties are ordered by row number.

    If the search is not exhaustive, these are the nearest of its candidates, with exact distances.

    Args:
        candidates: a search over `rows_FC`.
        query_GC: (G, C) float16; a non-finite query finds nothing.
        rows_FC: (F, C) float16, finite.
        k: neighbours per query.
    """
    distance_Gk = query_GC.new_full((len(query_GC), k), torch.inf, dtype=torch.float64)
    row_Gk = query_GC.new_full((len(query_GC), k), -1, dtype=torch.int64)
    if k == 0 or len(candidates) == 0:
        return Nearest(distance_Gk, row_Gk, 0)
    if not candidates.exhaustive:
        return _reranked(candidates, query_GC, rows_FC, k)
    centred_GC = query_GC.float() - candidates.centre_C
    norm_G = centred_GC.double().square().sum(dim=1).sqrt()
    # |fl(d²) − d²| <= rounding · (|q| + |x|)² for sums of C products in float32, in any order, with a 2x margin.
    rounding = (query_GC.shape[1] + 16) * torch.finfo(torch.float32).eps
    limit = min(len(candidates), max(MAX_CANDIDATES, k))

    fetched = min(k + _SPARE, limit)
    open_G = query_GC.isfinite().all(dim=1).nonzero().flatten()
    while len(open_G):
        approximate, row = candidates(centred_GC[open_G], fetched)
        distance, row = by_distance(squared_distances(query_GC[open_G], rows_FC, row), row)
        taken = min(k, fetched)
        distance_Gk[open_G, :taken], row_Gk[open_G, :taken] = distance[:, :taken], row[:, :taken]
        if fetched == limit:
            break
        # A row that was left out but is no farther than the k-th has |x| <= |q| + d, so its approximate distance is at
        # most `reach`; but that of every row left out is at least that of the last one fetched.
        kth = distance[:, k - 1]
        reach = kth + rounding * (2 * norm_G[open_G] + kth.sqrt()).square()
        open_G = open_G[approximate[:, -1] <= reach]
        fetched = min(8 * fetched, limit)
    return Nearest(distance_Gk, row_Gk, len(open_G) if limit < len(candidates) else 0)


def _reranked(candidates: Candidates, query_GC: Tensor, rows_FC: Tensor, k: int) -> Nearest:
    """Searches once and re-ranks by exact distance; nothing is proved, so nothing counts as uncertain."""
    centred_GC = query_GC.float() - candidates.centre_C
    finite_G = centred_GC.sum(dim=1).isfinite()  # no sum of finite float16 values overflows float32
    fetched = min(k * candidates.per_neighbour + _SPARE, len(candidates))
    row = candidates(centred_GC.where(finite_G[:, None], 0.0), fetched)[1].masked_fill(~finite_G[:, None], -1)
    distance = squared_distances(query_GC, rows_FC, row.clamp(min=0)).masked_fill(row < 0, torch.inf)
    distance, row = by_distance(distance, row)
    missing = (0, max(0, k - fetched))
    return Nearest(pad(distance[:, :k], missing, value=torch.inf), pad(row[:, :k], missing, value=-1), 0)


def squared_distances(query_GC: Tensor, rows_FC: Tensor, row_Gk: Tensor) -> Tensor:
    """Returns the squared Euclidean distances of queries to the rows given for each, (G, k) float64.

    Differences and squares are rounded to float32 one by one and summed in float64 along C, pair by pair, so that a
    value depends on its pair alone, not on what else is computed with it.

    Args:
        query_GC: (G, C) float16.
        rows_FC: (F, C) float16.
        row_Gk: (G, k) int64 in 0..F-1.
    """
    (num_queries, k), width = row_Gk.shape, query_GC.shape[1]
    distance_Gk = query_GC.new_empty(num_queries, k, dtype=torch.float64)
    block = max(1, _BLOCK // max(1, k * width))
    query_GC = query_GC.float()  # once: a difference of mixed types takes twice as long
    for start in range(0, num_queries, block):
        row_bk = row_Gk[start : start + block]
        difference_bkC = rows_FC.index_select(0, row_bk.flatten()).float().view(*row_bk.shape, width)
        difference_bkC -= query_GC[start : start + block, None]
        torch.sum(difference_bkC.square_(), dim=2, dtype=torch.float64, out=distance_Gk[start : start + block])
    return distance_Gk


def by_distance(distance_Gk: Tensor, id_Gk: Tensor) -> tuple[Tensor, Tensor]:
    """Sorts each row of candidates by distance, then by id; rows already in order, which most are, are only checked."""
    further_Gk, same_Gk = distance_Gk.diff(dim=1) > 0, distance_Gk[:, 1:] == distance_Gk[:, :-1]
    mixed_G = (~(further_Gk | (same_Gk & (id_Gk.diff(dim=1) >= 0))).all(dim=1)).nonzero().flatten()
    if len(mixed_G) == 0:
        return distance_Gk, id_Gk
    id_Mk, order_Mk = id_Gk[mixed_G].sort(dim=1)
    distance_Mk, again_Mk = distance_Gk[mixed_G].gather(1, order_Mk).sort(dim=1, stable=True)
    return distance_Gk.index_copy(0, mixed_G, distance_Mk), id_Gk.index_copy(0, mixed_G, id_Mk.gather(1, again_Mk))


def centre(rows_FC: Tensor) -> Tensor:
    """Returns the mean row, (C,) float32; zero if there are no rows."""
    return torch.stack([part.sum(dim=0, dtype=torch.float32) for part in _parts(rows_FC)]).sum(dim=0) / max(
        1, len(rows_FC)
    )


def moments(rows_FC: Tensor) -> Tensor:
    """Returns the number of rows, the sum of their squares and their sum, (2 + C,) float64; those of parts add up."""
    total_C = torch.zeros(rows_FC.shape[1], dtype=torch.float64, device=rows_FC.device)
    square = torch.zeros((), dtype=torch.float64, device=rows_FC.device)
    for part in _parts(rows_FC):
        wide = part.double()
        total_C, square = total_C + wide.sum(dim=0), square + wide.square().sum()
    return torch.cat([torch.full_like(square, len(rows_FC))[None], square[None], total_C])


def spread_of(sums: Tensor) -> Tensor:
    """Returns the mean squared distance of two different rows, () float64; 0 below two rows.

    Args:
        sums: (2 + C,) float64, as `moments` returns them.
    """
    rows, square, total_C = sums[0], sums[1], sums[2:]
    # Σ_{i≠j} |x_i − x_j|² = 2 (F Σ |x_i|² − |Σ x_i|²), over F (F − 1) pairs.
    pairs = (rows * (rows - 1)).clamp(min=1)
    return (2 * (rows * square - total_C.square().sum()) / pairs).clamp(min=0)


def _parts(rows_FC: Tensor) -> Sequence[Tensor]:
    """Returns the rows in parts of R: whatever converts all of them at once takes several times their memory."""
    return rows_FC.split(_ROWS_PER_PRODUCT)
