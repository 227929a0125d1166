"""The pattern of the transposed operator, on Triton: the entries of every vertex, in order."""

from __future__ import annotations

import torch
from torch import Tensor

from mmsa_kernels.hyperedge_memory.arguments import blocks_of
from mmsa_kernels.hyperedge_memory.transpose_kernels import (
    SCANNED_VERTICES,
    count_kernel,
    place_kernel,
    rank_kernel,
    scan_kernel,
)

MOST_SCANNED, MOST_COMPARED = 1 << 14, 1 << 24
"""The most entries, and vertices times entries, for which each program reads all entries: one launch, not six."""

# Except in the scan, each thread has one entry, so that loads, atomics and stores have the same layout.
SCAN = {"BE": 2048, "num_warps": 4}
COUNT = PLACE = {"BE": 256, "num_warps": 8}
RANK = {"BE": 128, "UNROLL": 4, "num_warps": 4}


def entries_of_vertices(col: Tensor, num_vertices: int) -> tuple[Tensor, Tensor]:
    """Returns the pattern of the transpose of a CSR matrix, with the same bits as `mmsa_kernels.transpose_csr`.

    Args:
        col: (E,) integers from 0 on, contiguous; entries in columns from `num_vertices` on are left out.
        num_vertices: the number of rows of the transpose.

    Returns:
        vertexptr (num_vertices + 1,) and order (E,), int32 where E allows it: the entries of column v, ascending, are
        order[vertexptr[v]:vertexptr[v + 1]]. Numbers of `order` beyond vertexptr[-1] are undefined.
    """
    entries = col.numel()
    order = col.new_empty(entries, dtype=torch.int32 if entries < 1 << 31 else torch.int64)
    if entries <= MOST_SCANNED and max(entries, SCAN["BE"]) * num_vertices <= MOST_COMPARED:
        vertexptr = order.new_empty(num_vertices + 1)
        scan_kernel[(blocks_of(SCANNED_VERTICES.value, num_vertices + 1),)](
            col, vertexptr, order, entries, num_vertices, **SCAN
        )
        return vertexptr, order
    count, placed = order.new_zeros(num_vertices + 1), torch.empty_like(order)
    arrival = order  # the same memory: it is read before the order is written
    grid = (max(blocks_of(COUNT["BE"], entries), 1),)
    count_kernel[grid](col, count, arrival, entries, num_vertices, **COUNT)
    vertexptr = count.cumsum(0, dtype=order.dtype)
    place_kernel[grid](col, vertexptr, arrival, placed, entries, num_vertices, **PLACE)
    rank_kernel[(max(blocks_of(RANK["BE"], entries), 1),)](col, vertexptr, placed, order, num_vertices, **RANK)
    return vertexptr, order
