"""The Triton kernels that gather rows: the hyperedge aggregation and its gradients, bound by memory bandwidth.

A program is one warp that owns a row, or a few short ones, so that very many programs run at the same time and hide
each other's latency. Every number is written by one program that adds in a fixed order, so no sum is atomic and every
run gives the same bits. Mathematics: ``kernels/README.md``; launches: ``launch.py``.

Block sizes: GM rows, BD >= D columns, BI of them in a line, UNROLL entries that are loaded at the same time. Comments
give shapes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmsa_kernels.hyperedge_memory.pieces import load_pieces, split, store_pieces, whole
from mmsa_kernels.hyperedge_memory.reference import EPS

_EPS: tl.constexpr = tl.constexpr(EPS)


@triton.jit
def _entries_of(rowptr_ptr, row, in_rows):
    """Returns where the entries of rows begin, and how many each row has."""
    start = tl.load(rowptr_ptr + row, mask=in_rows, other=0).to(tl.int64)
    end = tl.load(rowptr_ptr + row + 1, mask=in_rows, other=0).to(tl.int64)
    return start, (end - start).to(tl.int32)


@triton.jit
def _place_of(
    vertex,
    x_ptr,
    stale_ptr,
    num_fresh,
    X_STRIDE: tl.constexpr,
    STALE_STRIDE: tl.constexpr,
    HAS_STALE: tl.constexpr,
):
    """Returns where the rows of vertices begin: in x, or in the stale table for vertices beyond the end of x."""
    place = x_ptr + vertex * X_STRIDE
    if HAS_STALE:
        place = tl.where(vertex < num_fresh, place, stale_ptr + (vertex - num_fresh) * STALE_STRIDE)
    return place


# The numbers of rows and vertices differ in every batch, and must not cause a recompilation.
@triton.jit(do_not_specialize=["num_fresh", "num_rows"])
def aggregate_kernel(
    x_ptr,
    stale_ptr,
    rowptr_ptr,
    col_ptr,
    weight_ptr,
    g_ptr,
    g_pieces_ptr,
    inverse_length_ptr,
    num_fresh,
    num_rows,
    X_STRIDE: tl.constexpr,
    STALE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    GM: tl.constexpr,
    BD: tl.constexpr,
    UNROLL: tl.constexpr,
    HAS_STALE: tl.constexpr,
    COSINE: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Writes g, the weighted sum of the rows of x that each row gathers, and what the attention reads of it, in pieces.

    The attention reads g itself, or for cosine its direction; then 1/|g| is written too.
    """
    row = tl.program_id(0).to(tl.int64) * GM + tl.arange(0, GM)  # [GM]
    column = tl.arange(0, BD)  # [BD]
    in_rows = row < num_rows
    start, length = _entries_of(rowptr_ptr, row, in_rows)
    g = tl.zeros([GM, BD], tl.float32)
    for first in range(0, tl.max(length), UNROLL):
        for step in tl.static_range(UNROLL):  # unrolled, so that their loads are in flight at the same time
            here = first + step < length  # [GM]
            entry = start + (first + step)
            weight = tl.load(weight_ptr + entry, mask=here, other=0.0).to(tl.float32)
            vertex = tl.load(col_ptr + entry, mask=here, other=0).to(tl.int64)
            place = _place_of(vertex, x_ptr, stale_ptr, num_fresh, X_STRIDE, STALE_STRIDE, HAS_STALE)
            x = tl.load(place[:, None] + column[None, :], mask=here[:, None] & (column < D)[None, :], other=0.0)
            g += weight[:, None] * x.to(tl.float32)  # [GM, BD]
    element = row[:, None] * D + column[None, :]  # [GM, BD]
    in_block = in_rows[:, None] & (column < D)[None, :]
    tl.store(g_ptr + element, g.to(g_ptr.dtype.element_ty), mask=in_block)
    if COSINE:
        square = tl.sum(g * g, axis=1)  # [GM]
        has_direction = square > _EPS * _EPS
        inverse_length = tl.where(has_direction, 1.0 / tl.sqrt(tl.where(has_direction, square, 1.0)), 0.0)
        tl.store(inverse_length_ptr + row, inverse_length, mask=in_rows)
        g *= inverse_length[:, None]
    if COSINE or PIECES > 1:
        pieces = split(g, g_pieces_ptr.dtype.element_ty, PIECES)
        store_pieces(g_pieces_ptr, element, pieces, in_block, num_rows.to(tl.int64) * D, PIECES)


@triton.jit(do_not_specialize=["num_fresh", "num_rows", "first_row"])
def backward_entries_kernel(
    x_ptr,
    stale_ptr,
    rowptr_ptr,
    col_ptr,
    g_pieces_ptr,
    grad_g_ptr,
    attention_grad_g_ptr,
    total_grad_g_ptr,
    grad_weight_ptr,
    row_of_entry_ptr,
    num_fresh,
    num_rows,
    first_row,
    X_STRIDE: tl.constexpr,
    STALE_STRIDE: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BI: tl.constexpr,
    UNROLL: tl.constexpr,
    HAS_STALE: tl.constexpr,
    COSINE: tl.constexpr,
    PIECES: tl.constexpr,
    HAS_GRAD_G: tl.constexpr,
    WANTS_GRAD_X: tl.constexpr,
    WANTS_GRAD_WEIGHT: tl.constexpr,
):
    """Writes the whole gradient of g of a row, the gradients of the weights of its entries, and the row of each entry.

    The gradients of UNROLL weights are stored together: the compiler moves no load past a store, so that otherwise each
    entry would wait for the one before it. Rows of x are read in lines of BI columns, first the same line of all
    entries. So few threads share a line, their neighbours have other entries, and a sum over threads takes few steps.
    """
    LINES: tl.constexpr = BD // BI
    local = tl.program_id(0).to(tl.int64)
    row = first_row + local
    start = tl.load(rowptr_ptr + row).to(tl.int64)
    length = (tl.load(rowptr_ptr + row + 1).to(tl.int64) - start).to(tl.int32)
    column = tl.arange(0, BD)  # [BD]
    in_columns = column < D
    element = row * D + column
    total = tl.load(attention_grad_g_ptr + local * D + column, mask=in_columns, other=0.0)
    if COSINE:  # the length of g does not change a cosine
        unit_g = whole(load_pieces(g_pieces_ptr, element, in_columns, num_rows.to(tl.int64) * D, PIECES), PIECES)
        total -= tl.sum(total * unit_g) * unit_g
    if HAS_GRAD_G:
        total += tl.load(grad_g_ptr + element, mask=in_columns, other=0.0).to(tl.float32)
    if WANTS_GRAD_X:
        tl.store(total_grad_g_ptr + element, total.to(total_grad_g_ptr.dtype.element_ty), mask=in_columns)
    line = tl.arange(0, LINES * UNROLL)  # [LINES * UNROLL], the first lines of all entries first
    line_column = (line // UNROLL * BI)[:, None] + tl.arange(0, BI)[None, :]  # [LINES * UNROLL, BI]
    for first in range(0, length, UNROLL):
        step = first + tl.arange(0, UNROLL)  # [UNROLL]
        here = step < length
        entry = start + step
        if WANTS_GRAD_X:
            tl.store(row_of_entry_ptr + entry, row.to(row_of_entry_ptr.dtype.element_ty), mask=here)
        if WANTS_GRAD_WEIGHT:
            vertex = tl.load(col_ptr + entry, mask=here, other=0).to(tl.int64)
            vertex = tl.broadcast_to(vertex[None, :], (LINES, UNROLL)).reshape(LINES * UNROLL)
            place = _place_of(vertex, x_ptr, stale_ptr, num_fresh, X_STRIDE, STALE_STRIDE, HAS_STALE)
            in_lines = (first + line % UNROLL < length)[:, None] & (line_column < D)
            x = tl.load(place[:, None] + line_column, mask=in_lines, other=0.0)  # [LINES * UNROLL, BI]
            x = x.reshape(LINES, UNROLL, BI).permute(1, 0, 2).reshape(UNROLL, BD)
            grad_weight = tl.sum(total[None, :] * x.to(tl.float32), axis=1)  # [UNROLL]
            tl.store(grad_weight_ptr + entry, grad_weight.to(grad_weight_ptr.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["num_vertices"])
def backward_vertices_kernel(
    total_grad_g_ptr,
    vertexptr_ptr,
    order_ptr,
    row_of_entry_ptr,
    weight_ptr,
    grad_x_ptr,
    num_vertices,
    D: tl.constexpr,
    GM: tl.constexpr,
    BD: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Writes the gradient of x: for each vertex the weighted sum of the gradients of g of the rows that gather it."""
    vertex = tl.program_id(0).to(tl.int64) * GM + tl.arange(0, GM)  # [GM]
    column = tl.arange(0, BD)  # [BD]
    in_vertices = vertex < num_vertices
    in_columns = column < D
    start, length = _entries_of(vertexptr_ptr, vertex, in_vertices)
    grad_x = tl.zeros([GM, BD], tl.float32)
    for first in range(0, tl.max(length), UNROLL):
        for step in tl.static_range(UNROLL):
            here = first + step < length  # [GM]
            entry = tl.load(order_ptr + start + (first + step), mask=here, other=0).to(tl.int64)
            weight = tl.load(weight_ptr + entry, mask=here, other=0.0).to(tl.float32)
            row = tl.load(row_of_entry_ptr + entry, mask=here, other=0).to(tl.int64)
            grad_g = tl.load(
                total_grad_g_ptr + row[:, None] * D + column[None, :],
                mask=here[:, None] & in_columns[None, :],
                other=0.0,
            )
            grad_x += weight[:, None] * grad_g.to(tl.float32)  # [GM, BD]
    tl.store(
        grad_x_ptr + vertex[:, None] * D + column[None, :],
        grad_x.to(grad_x_ptr.dtype.element_ty),
        mask=in_vertices[:, None] & in_columns[None, :],
    )
