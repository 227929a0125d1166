"""From neighbour lists to the sparse operator of a hypergraph, vectorised and on the device of its inputs.

A hypergraph is stored as CSR: the members of hyperedge e are col[rowptr[e]:rowptr[e + 1]], each with an optional degree
of membership. Hyperedges are sets, so a repeated member counts once. V vertices, M hyperedges, I incidences (a vertex
and a hyperedge that contains it), P pairs of vertices that share a hyperedge. Indices are returned as int64. Nothing
here uses float atomics, so every run gives the same bits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmsa_kernels.dtypes import check_dtypes

Normalization = Literal["random_walk", "symmetric"]


def hyperedges_from_neighbours(
    neighbours_BK: Tensor, membership_BK: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the hyperedges e_i = {i} ∪ neighbours of i as CSR.

    Args:
        neighbours_BK: (B, K) int32 or int64: the neighbours of vertex i. They may repeat or include i; a negative
            number stands for a missing one.
        membership_BK: (B, K) floating point: the degree of membership of each neighbour, where that of i itself is
            1; None means 1 for all. For a repeated neighbour the first one counts.

    Returns:
        rowptr (B + 1,); col, the members of each hyperedge, ascending and distinct; and their memberships, in
        the dtype of `membership_BK`, float32 without it.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: `neighbours_BK` is not a matrix, or `membership_BK` has another shape.
    """
    check_dtypes(indices={"neighbours_BK": neighbours_BK}, values={"membership_BK": membership_BK})
    if neighbours_BK.dim() != 2:
        raise ValueError(f"neighbours_BK: got shape {tuple(neighbours_BK.shape)}, expected (B, K)")
    if membership_BK is None:
        membership_BK = torch.ones(neighbours_BK.shape, device=neighbours_BK.device)
    if membership_BK.shape != neighbours_BK.shape:
        raise ValueError(
            f"membership_BK: got shape {tuple(membership_BK.shape)}, expected that of neighbours_BK, "
            f"{tuple(neighbours_BK.shape)}"
        )
    own_B1 = torch.arange(neighbours_BK.shape[0], device=neighbours_BK.device)[:, None]
    members, order = torch.cat([own_B1, neighbours_BK.long()], dim=1).sort(dim=1, stable=True)
    membership = torch.cat([torch.ones_like(own_B1, dtype=membership_BK.dtype), membership_BK], dim=1).gather(1, order)
    keep = members >= 0
    keep[:, 1:] &= members[:, 1:] != members[:, :-1]
    return _pointers(keep.sum(dim=1)), members[keep], membership[keep]


def hypergraph_operator(
    rowptr: Tensor,
    col: Tensor,
    num_vertices: int,
    *,
    normalization: Normalization = "random_walk",
    edge_weight: Tensor | None = None,
    membership: Tensor | None = None,
    num_rows: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the convolution operator G of a hypergraph as CSR.

    With the incidence matrix H (V×M, memberships, or zeros and ones), hyperedge weights W = diag(w), hyperedge
    sizes B_e = Σ_v H_ve and vertex degrees D_v = Σ_e w_e H_ve::

        random_walk:  G = D^-1   H W B^-1 Hᵀ               (its rows sum to one)
        symmetric:    G = D^-1/2 H W B^-1 Hᵀ D^-1/2        (HGNN, Feng et al. 2019, arXiv 1809.09401)

    where 1/0 is taken as 0: an empty hyperedge adds nothing, and a vertex in no hyperedge has an empty row.

    Args:
        rowptr: (M + 1,) int32 or int64: the members of hyperedge e are col[rowptr[e]:rowptr[e + 1]].
        col: int32 or int64 in 0..num_vertices-1, in any order; repeated members count once.
        num_vertices: V.
        normalization: ``random_walk`` or ``symmetric``.
        edge_weight: (M,) floating point, not negative; None means 1 for all. The result is differentiable in
            it.
        membership: floating point, not negative, in the shape of `col`: H of each member; for a repeated one the
            largest counts. None means 1 for all.
        num_rows: how many of the first rows of G to return; None means all V.

    Returns:
        rowptr (num_rows + 1,); col, ascending and distinct within a row; and weight, in the wider dtype of
        `edge_weight` and `membership`, float32 without either.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or a value is wrong, or the normalization is unknown. That `rowptr` never falls is checked
            on CPU only, because on a GPU the host would have to wait for the device.
    """
    check_dtypes(indices={"rowptr": rowptr, "col": col}, values={"edge_weight": edge_weight, "membership": membership})
    num_edges = rowptr.numel() - 1
    num_rows = num_vertices if num_rows is None else num_rows
    _check_hypergraph(rowptr, col, num_vertices, edge_weight, membership, num_rows)
    if normalization not in ("random_walk", "symmetric"):
        raise ValueError(f"normalization: got {normalization!r}, expected 'random_walk' or 'symmetric'")
    if membership is None:
        membership = torch.ones(
            col.shape, device=col.device, dtype=torch.float32 if edge_weight is None else edge_weight.dtype
        )
    if edge_weight is None:
        edge_weight = membership.new_ones(num_edges)

    # The members of every hyperedge, then the hyperedges of every vertex, distinct and ascending.
    rowptr, col, membership = _distinct(rowptr, col, membership, num_vertices)
    number_M = rowptr.diff()
    size_M = _sums(membership, rowptr)
    share_I = _quotient(membership, size_M.repeat_interleave(number_M, output_size=len(col)))
    vertex_ptr, edge_I, order_I = transpose_csr(rowptr, col, num_vertices)
    degree_V = _sums(edge_weight[edge_I] * membership[order_I], vertex_ptr)

    # H W B^-1 Hᵀ: each incidence (i, e) of a wanted row i is paired with every member j of e.
    vertex_I = _rows(vertex_ptr)
    wanted_I = vertex_I < num_rows
    vertex_I, edge_I, order_I = vertex_I[wanted_I], edge_I[wanted_I], order_I[wanted_I]
    pair_ptr = _pointers(number_M[edge_I])
    incidence_P = _rows(pair_ptr)
    edge_P = edge_I[incidence_P]
    member_P = torch.arange(incidence_P.numel(), device=col.device) - pair_ptr[incidence_P] + rowptr[edge_P]
    cell_P, order_P = (vertex_I[incidence_P] * num_vertices + col[member_P]).sort(stable=True)
    share_P = (membership[order_I] * edge_weight[edge_I])[incidence_P] * share_I[member_P]
    cell, pairs = cell_P.unique_consecutive(return_counts=True)
    weight = _sums(share_P[order_P], _pointers(pairs))

    row, col = cell // max(num_vertices, 1), cell % max(num_vertices, 1)
    if normalization == "random_walk":
        weight = _quotient(weight, degree_V[row])
    else:
        root_V = torch.where(degree_V > 0, torch.where(degree_V > 0, degree_V, 1).sqrt(), 0)
        weight = _quotient(_quotient(weight, root_V[row]), root_V[col])
    return _pointers(torch.bincount(row, minlength=num_rows)), col, weight


def transpose_csr(rowptr: Tensor, col: Tensor, num_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the transpose of the pattern of a CSR matrix.

    Args:
        rowptr: (R + 1,) integers.
        col: (E,) integers from 0 on.
        num_columns: how many columns to transpose; the entries of further columns come last, beyond the pointers
            of the transpose.

    Returns:
        rowptr (num_columns + 1,) and col (E,) of the transpose, and `order` (E,): entry e of the transpose is
        entry order[e] of the matrix, so the values of the transpose are ``weight[order]``. The entries of a row keep
        their order, so their columns ascend.
    """
    if num_columns < 1 << 31:  # half the bytes to sort
        col = col.clamp(max=num_columns).int()
    ordered, order = col.sort(stable=True)
    # By search, not by counts: on a GPU the host waits for counts that become sizes.
    columns = torch.arange(num_columns + 1, device=col.device, dtype=ordered.dtype)
    row = torch.searchsorted(rowptr.contiguous(), order.to(rowptr.dtype), right=True) - 1
    return torch.searchsorted(ordered, columns), row, order


def _distinct(rowptr: Tensor, col: Tensor, value: Tensor, num_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts the columns of each row and merges repeated ones, keeping the largest of their values."""
    cell, order = (_rows(rowptr) * num_columns + col).sort(stable=True)
    cell, repeats = cell.unique_consecutive(return_counts=True)
    value = torch.segment_reduce(value[order], "max", offsets=_pointers(repeats), axis=0, initial=0)
    row, col = cell // max(num_columns, 1), cell % max(num_columns, 1)
    return _pointers(torch.bincount(row, minlength=rowptr.numel() - 1)), col, value


def _sums(values: Tensor, ptr: Tensor) -> Tensor:
    """Returns the sum of each segment values[ptr[s]:ptr[s + 1]], in a fixed order."""
    return torch.segment_reduce(values, "sum", offsets=ptr, axis=0, initial=0)


def _rows(rowptr: Tensor) -> Tensor:
    """Returns the row of each entry of a CSR matrix, int64."""
    return torch.repeat_interleave(rowptr.long().diff())


def _pointers(counts: Tensor) -> Tensor:
    """Returns row pointers, int64, from the number of entries in each row."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    """Returns x/y, and 0 (without a gradient) where y is 0.

    Not x · (1/y): the inverse of a subnormal number, such as a membership of a far neighbour, is infinite.
    """
    positive = y > 0
    return torch.where(positive, x / torch.where(positive, y, 1), 0)


def _check_hypergraph(
    rowptr: Tensor,
    col: Tensor,
    num_vertices: int,
    edge_weight: Tensor | None,
    membership: Tensor | None,
    num_rows: int,
) -> None:
    num_edges = rowptr.numel() - 1
    if rowptr.dim() != 1 or num_edges < 0 or int(rowptr[0]) != 0 or int(rowptr[-1]) != col.numel():
        raise ValueError(
            f"rowptr: got shape {tuple(rowptr.shape)}, expected (M + 1,) rising from 0 to the {col.numel()} entries "
            "of col"
        )
    if rowptr.device.type == "cpu" and bool((rowptr.diff() < 0).any()):
        raise ValueError(f"rowptr: got {int(rowptr.diff().min())} as the size of a hyperedge, expected none below 0")
    if col.numel() and not (int(col.min()) >= 0 and int(col.max()) < num_vertices):
        raise ValueError(
            f"col: got values from {int(col.min())} to {int(col.max())}, expected vertices 0 to {num_vertices - 1}"
        )
    if edge_weight is not None and edge_weight.shape != (num_edges,):
        raise ValueError(f"edge_weight: got shape {tuple(edge_weight.shape)}, expected ({num_edges},)")
    if membership is not None and membership.shape != col.shape:
        raise ValueError(f"membership: got shape {tuple(membership.shape)}, expected that of col, {tuple(col.shape)}")
    for name, values in (("edge_weight", edge_weight), ("membership", membership)):
        # One look where all is well: each makes the host wait for a GPU.
        if values is None or bool(((values >= 0) & values.isfinite()).all()):
            continue
        if not bool((values >= 0).all()):  # not `< 0`, which NaN would pass
            raise ValueError(f"{name}: got a smallest value of {float(values.min())}, expected none below 0")
        raise ValueError(f"{name}: got {float(values.max())}, expected finite values")
    if not 0 <= num_rows <= num_vertices:
        raise ValueError(f"num_rows: got {num_rows}, expected 0 to num_vertices = {num_vertices}")
