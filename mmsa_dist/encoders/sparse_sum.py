"""Sums of rows by a sparse 0/1 matrix: the primitive of pooling and message passing.

`torch.embedding_bag` gathers and adds in one pass, without an intermediate (edges, width) tensor and in a fixed
order, so results are bitwise reproducible on CPU and GPU, forward and backward. On one core it takes a sixth of the
time of `index_add` and `scatter_add`. The sum is registered as an operator, which `torch.compile` does not trace.

S segments, N rows, Z ones of the matrix, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmsa_dist.runtime.operators import operator


@dataclass(frozen=True)
class SparseSum:
    """An S x N 0/1 matrix with Z ones in compressed rows (CSR), and its transpose for the backward pass."""

    column_Z: Tensor
    """(Z,) int64: columns of the ones, row by row."""
    ptr: Tensor
    """(S + 1,) int64: the ones of row s are ptr[s]:ptr[s + 1]."""
    transposed_column_Z: Tensor
    """(Z,) int64: rows of the ones, column by column."""
    transposed_ptr: Tensor
    """(N + 1,) int64: the ones of column n are transposed_ptr[n]:transposed_ptr[n + 1]."""

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Returns (S, D): row s sums the rows of `x_ND` at the columns of its ones; zero where it has none."""
        sum_SD: Tensor = torch.ops.mmsa_dist.sparse_sum(
            x_ND, self.column_Z, self.ptr, self.transposed_column_Z, self.transposed_ptr
        )
        return sum_SD


def sum_of_segments(ptr: Tensor, segment_N: Tensor) -> SparseSum:
    """Returns the sums over segments of consecutive rows.

    Args:
        ptr: (S + 1,) int64: segment s is rows ptr[s]:ptr[s + 1].
        segment_N: (N,) int64: the segment of each row.
    """
    row_N = torch.arange(segment_N.shape[0] + 1, device=ptr.device)
    return SparseSum(row_N[:-1], ptr, segment_N, row_N)


def segment_ptr(segment_N: Tensor, num_segments: int) -> Tensor:
    """Returns the row pointers (num_segments + 1,) of ascending segment numbers (N,)."""
    return torch.searchsorted(segment_N, torch.arange(num_segments + 1, device=segment_N.device))


def sum_rows(x_ND: Tensor, column_Z: Tensor, ptr: Tensor) -> Tensor:
    """Returns (S, D): row s is the sum of the rows ``column_Z[ptr[s]:ptr[s + 1]]`` of `x_ND`.

    For values that need no gradient; otherwise use `SparseSum`.
    """
    return torch.embedding_bag(x_ND.contiguous(), column_Z, ptr, mode=0, include_last_offset=True)[0]


@operator("mmsa_dist::sparse_sum")
def _sparse_sum(
    x_ND: Tensor, column_Z: Tensor, ptr: Tensor, transposed_column_Z: Tensor, transposed_ptr: Tensor
) -> Tensor:
    return sum_rows(x_ND, column_Z, ptr)


@torch.library.register_fake("mmsa_dist::sparse_sum")
def _(x_ND: Tensor, column_Z: Tensor, ptr: Tensor, transposed_column_Z: Tensor, transposed_ptr: Tensor) -> Tensor:
    return x_ND.new_empty(ptr.shape[0] - 1, x_ND.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor | None, ...]:
    column_Z, ptr, transposed_column_Z, transposed_ptr = ctx.saved_tensors
    grad_ND = torch.ops.mmsa_dist.sparse_sum(grad_SD, transposed_column_Z, transposed_ptr, column_Z, ptr)
    return grad_ND, None, None, None, None


torch.library.register_autograd("mmsa_dist::sparse_sum", _backward, setup_context=_setup_context)
