"""From neighbour lists to the sparse operator of a hypergraph, vectorised and on the device of its inputs.

A hypergraph is held as CSR: the members of hyperedge e are col[rowptr[e]:rowptr[e + 1]]. Hyperedges are sets,
so a member that is repeated counts once. V vertices, M hyperedges, I incidences (pairs of a vertex and a
hyperedge it is in), P pairs of vertices that share a hyperedge. Indices come out as int64; nothing here uses
float atomics, so the same bits come out of every run.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["random_walk", "symmetric"]


def hyperedges_from_neighbours(neighbours_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the hyperedges e_i = {i} ∪ neighbours of i as CSR.

    Args:
        neighbours_BK: (B, K) integers: neighbours of vertex i, any of them repeated or i itself; negative
            where one is missing.

    Returns:
        rowptr (B + 1,) and col: members of each hyperedge, ascending and distinct.

    Raises:
        ValueError: `neighbours_BK` is not a matrix.
    """
    if neighbours_BK.dim() != 2:
        raise ValueError(f"neighbours_BK: got shape {tuple(neighbours_BK.shape)}, expected (B, K)")
    own_B1 = torch.arange(neighbours_BK.shape[0], device=neighbours_BK.device)[:, None]
    members = torch.cat([own_B1, neighbours_BK.long()], dim=1).sort(dim=1).values
    keep = members >= 0
    keep[:, 1:] &= members[:, 1:] != members[:, :-1]
    return _pointers(keep.sum(dim=1)), members[keep]


def hypergraph_operator(
    rowptr: Tensor,
    col: Tensor,
    num_vertices: int,
    *,
    normalization: Normalization = "random_walk",
    edge_weight: Tensor | None = None,
    num_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the convolution operator G of a hypergraph as CSR.

    With the incidence matrix H (V×M, zeros and ones), hyperedge weights W = diag(w), hyperedge sizes
    B_e = Σ_v H_ve and vertex degrees D_v = Σ_e w_e H_ve::

        random_walk:  G = D^-1   H W B^-1 Hᵀ               (its rows sum to one)
        symmetric:    G = D^-1/2 H W B^-1 Hᵀ D^-1/2        (HGNN, Feng et al. 2019, arXiv 1809.09401)

    where 1/0 counts as 0: an empty hyperedge adds nothing, a vertex in no hyperedge has an empty row.

    Args:
        rowptr: (M + 1,) int32 or int64: members of hyperedge e are col[rowptr[e]:rowptr[e + 1]].
        col: int32 or int64 in 0..num_vertices-1, in any order; repeated members count once.
        num_vertices: V; may be more or less than M.
        normalization: ``random_walk`` or ``symmetric``.
        edge_weight: (M,) floating point, not negative; None means 1 for all. The result is differentiable in
            it.
        num_rows: give only the first rows of G; None means all V.

    Returns:
        rowptr (num_rows + 1,), col (ascending and distinct within a row), weight in the dtype of
        `edge_weight`, float32 without one.

    Raises:
        ValueError: a shape or a value is wrong, or the normalization is unknown.
    """
    num_edges = rowptr.numel() - 1
    num_rows = num_vertices if num_rows is None else num_rows
    if edge_weight is None:
        edge_weight = torch.ones(num_edges, device=col.device)
    _check_hypergraph(rowptr, col, num_vertices, edge_weight, num_rows)
    if normalization not in ("random_walk", "symmetric"):
        raise ValueError(f"normalization: got {normalization!r}, expected 'random_walk' or 'symmetric'")

    # Members of every hyperedge, then hyperedges of every vertex, each once and ascending.
    rowptr, col = _distinct(rowptr, col, num_vertices)
    size_M = rowptr.diff()
    vertex_ptr, edge_I, _ = transpose_csr(rowptr, col, num_vertices)
    degree_V = torch.segment_reduce(edge_weight[edge_I], "sum", offsets=vertex_ptr, axis=0, initial=0)

    # H W B^-1 Hᵀ: each incidence (i, e) of a wanted row i meets every member j of e.
    vertex_I = _rows(vertex_ptr)
    wanted_I = vertex_I < num_rows
    vertex_I, edge_I = vertex_I[wanted_I], edge_I[wanted_I]
    pair_ptr = _pointers(size_M[edge_I])
    incidence_P = _rows(pair_ptr)
    edge_P = edge_I[incidence_P]
    member_P = torch.arange(incidence_P.numel(), device=col.device) - pair_ptr[incidence_P] + rowptr[edge_P]
    cell_P, order_P = (vertex_I[incidence_P] * num_vertices + col[member_P]).sort(stable=True)
    share_P = (edge_weight / size_M.clamp(min=1))[edge_P][order_P]
    cell, pairs = cell_P.unique_consecutive(return_counts=True)
    weight = torch.segment_reduce(share_P, "sum", offsets=_pointers(pairs), axis=0, initial=0)

    row, col = cell // max(num_vertices, 1), cell % max(num_vertices, 1)
    if normalization == "random_walk":
        weight = weight * _inverse(degree_V)[row]
    else:
        root_V = _inverse(degree_V).sqrt()
        weight = weight * root_V[row] * root_V[col]
    return _pointers(torch.bincount(row, minlength=num_rows)), col, weight


def transpose_csr(rowptr: Tensor, col: Tensor, num_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Transposes the pattern of a CSR matrix.

    Args:
        rowptr: (R + 1,) integers.
        col: (E,) integers from 0 on.
        num_columns: columns to transpose, rows of the transpose; entries of further ones come last, beyond its
            pointers.

    Returns:
        rowptr (num_columns + 1,) and col (E,) of the transpose, and `order` (E,): entry e of the transpose is
        entry order[e] of the matrix, so that its values are ``weight[order]``. Entries of a row keep the
        order they had, so their columns ascend.
    """
    col = col.clamp(max=num_columns)
    if num_columns < 1 << 31:  # half the bytes to sort
        col = col.int()
    ordered, order = col.sort(stable=True)
    # Searched, not counted: on a GPU, counts that become sizes make the host wait.
    columns = torch.arange(num_columns + 1, device=col.device, dtype=ordered.dtype)
    row = torch.searchsorted(rowptr.contiguous(), order.to(rowptr.dtype), right=True) - 1
    return torch.searchsorted(ordered, columns), row, order


def _distinct(rowptr: Tensor, col: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """Sorts the columns of each row and drops repeated ones."""
    cell = (_rows(rowptr) * num_columns + col).unique()
    row, col = cell // max(num_columns, 1), cell % max(num_columns, 1)
    return _pointers(torch.bincount(row, minlength=rowptr.numel() - 1)), col


def _rows(rowptr: Tensor) -> Tensor:
    """The row of each entry of a CSR matrix, int64."""
    return torch.repeat_interleave(rowptr.long().diff())


def _pointers(counts: Tensor) -> Tensor:
    """Row pointers from the number of entries in each row, int64."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _inverse(x: Tensor) -> Tensor:
    """1/x, and 0 (without a gradient) where x is 0."""
    positive = x > 0
    return torch.where(positive, 1 / torch.where(positive, x, 1), 0)


def _check_hypergraph(rowptr: Tensor, col: Tensor, num_vertices: int, edge_weight: Tensor, num_rows: int) -> None:
    num_edges = rowptr.numel() - 1
    if rowptr.dim() != 1 or num_edges < 0 or int(rowptr[0]) != 0 or int(rowptr[-1]) != col.numel():
        raise ValueError(
            f"rowptr: got shape {tuple(rowptr.shape)}, expected (M + 1,) rising from 0 to the {col.numel()} entries "
            "of col"
        )
    if col.numel() and not (int(col.min()) >= 0 and int(col.max()) < num_vertices):
        raise ValueError(
            f"col: got values from {int(col.min())} to {int(col.max())}, expected vertices 0 to {num_vertices - 1}"
        )
    if edge_weight.shape != (num_edges,):
        raise ValueError(f"edge_weight: got shape {tuple(edge_weight.shape)}, expected ({num_edges},)")
    # Not `< 0`, which NaN would pass.
    if not bool((edge_weight >= 0).all()):
        raise ValueError(f"edge_weight: got a smallest value of {float(edge_weight.min())}, expected none below 0")
    if not 0 <= num_rows <= num_vertices:
        raise ValueError(f"num_rows: got {num_rows}, expected 0 to num_vertices = {num_vertices}")
