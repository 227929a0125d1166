"""The launches of the Triton kernels: forward and backward of the operator, below autograd.

Each function launches one kernel, with its grid beside it; `forward` and `backward` call them in order. Shapes: N
vertices, V stale ones, B rows, E entries, S anchors, D width, P pieces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mmsa_kernels.hyperedge_memory.anchor_sums import AnchorSums
from mmsa_kernels.hyperedge_memory.arguments import (
    Attention,
    Inputs,
    OutputGrads,
    attention_constants,
    blocks_of,
    dtype_of_pieces,
    entry_constants,
    gather_constants,
    padded_anchors,
)
from mmsa_kernels.hyperedge_memory.attention_kernels import (
    backward_rows_kernel,
    backward_scores_kernel,
    forward_kernel,
)
from mmsa_kernels.hyperedge_memory.gather_kernels import (
    aggregate_kernel,
    backward_entries_kernel,
    backward_vertices_kernel,
)
from mmsa_kernels.hyperedge_memory.tiles import AttentionKernel, Tile, gather_rows, pieces_of
from mmsa_kernels.hyperedge_memory.transpose import entries_of_vertices

# Constants, so that the order of additions, and with it the bits of the result, depends on sizes and tiles alone.
_ATTENTION_AT_A_TIME = 1 << 25
"""How much attention, rows times anchors, the backward keeps at once, and as many gradients of scores."""
_LEAST_ROWS, _MOST_ATTENTION = 1 << 14, 1 << 28
"""It takes no fewer rows at once than fill a large GPU, unless they need more attention than this."""

ChooseTile = Callable[..., Tile]
"""`attention_tile`, or a function with its parameters, such as one that tries a tile."""


class Results(NamedTuple):
    """What the forward writes: the three outputs, and two tensors for the backward alone."""

    g_BD: Tensor
    readout_BD: Tensor
    lse_B: Tensor
    inverse_length_B: Tensor
    """``1 / |g|`` of each row for cosine; empty for dot."""
    g_PBD: Tensor
    """g, for cosine its direction, in the pieces that enter products; empty where `g_BD` is that already."""

    @property
    def g_pieces(self) -> Tensor:
        """What enters products for g."""
        return self.g_PBD if self.g_PBD.numel() else self.g_BD


class Wanted(NamedTuple):
    """Which inputs want a gradient."""

    x: bool
    weight: bool
    anchors: bool


class InputGrads(NamedTuple):
    """The gradients of the inputs, each empty where it is not wanted."""

    x_ND: Tensor
    weight: Tensor
    anchors_SD: Tensor


def empty_results(x_ND: Tensor, rowptr: Tensor, *, cosine: bool) -> Results:
    """Returns room for the results."""
    rows, width, pieces = rowptr.shape[0] - 1, x_ND.shape[1], pieces_of(x_ND.dtype)
    return Results(
        g_BD=x_ND.new_empty(rows, width),
        readout_BD=x_ND.new_empty(rows, width),
        lse_B=x_ND.new_empty(rows, dtype=torch.float32),
        inverse_length_B=x_ND.new_empty(rows if cosine else 0, dtype=torch.float32),
        g_PBD=x_ND.new_empty(pieces if pieces > 1 or cosine else 0, rows, width, dtype=dtype_of_pieces(x_ND.dtype)),
    )


def empty_gradients(x_ND: Tensor, weight: Tensor, anchors_SD: Tensor, wanted: Wanted) -> InputGrads:
    """Returns room for the gradients that are wanted."""
    return InputGrads(
        x_ND.new_empty(x_ND.shape if wanted.x else (0,)),
        weight.new_empty(weight.shape if wanted.weight else (0,)),
        anchors_SD.new_empty(anchors_SD.shape if wanted.anchors else (0,)),
    )


def forward(inputs: Inputs, choose_tile: ChooseTile) -> Results:
    """Computes the outputs, and what the backward needs again."""
    results = empty_results(inputs.x_ND, inputs.rowptr, cosine=inputs.cosine)
    if inputs.rows:
        tile = _tile("forward", inputs, choose_tile)
        with _on_device_of(inputs.x_ND):
            aggregate(inputs, results)
            attend(inputs, results, tile)
    return results


def aggregate(inputs: Inputs, results: Results) -> None:
    """Writes g, its pieces, and for cosine ``1 / |g|``."""
    aggregate_kernel[(blocks_of(gather_rows(inputs.width, inputs.dtype), inputs.rows),)](
        *inputs.tables(),
        inputs.weight,
        results.g_BD,
        results.g_pieces,
        results.inverse_length_B,
        **inputs.sizes(),
        **gather_constants(inputs.width, inputs.dtype),
        COSINE=inputs.cosine,
        PIECES=pieces_of(inputs.dtype),
    )


def attend(inputs: Inputs, results: Results, tile: Tile) -> None:
    """Writes the read-out and the log-sum-exp."""
    forward_kernel[(blocks_of(tile.rows, inputs.rows),)](
        inputs.anchors.pieces,
        inputs.anchors.length_S,
        results.g_pieces,
        results.readout_BD,
        results.lse_B,
        num_rows=inputs.rows,
        num_anchors=inputs.anchors.count,
        scale=inputs.scale,
        **attention_constants(tile, inputs.width, inputs.dtype),
        COSINE=inputs.cosine,
        INTERPRETED=inputs.interpreted,
    )


def backward(
    inputs: Inputs, results: Results, output_grads: OutputGrads, wanted: Wanted, choose_tile: ChooseTile
) -> InputGrads:
    """Computes the gradients that are wanted, for some rows at a time, so that little attention is kept at once."""
    gradients = empty_gradients(inputs.x_ND, inputs.weight, inputs.anchors_SD, wanted)
    most_rows = min(inputs.rows, _rows_at_a_time(inputs.anchors.count))
    attention = Attention(most_rows, inputs.anchors.count, results.g_BD)
    # In float32, because the part of it along g can be large, and is taken out again.
    attention_grad_g = results.g_BD.new_empty(most_rows, inputs.width, dtype=torch.float32)
    # For the gradient of x; another tensor stands in, not written, where it is not wanted.
    total_grad_g_BD = torch.empty_like(results.g_BD) if wanted.x else results.g_BD
    row_E = torch.empty_like(inputs.col, dtype=torch.int32) if wanted.x else inputs.col
    scores_tile, rows_tile = (_tile(kernel, inputs, choose_tile) for kernel in ("backward_scores", "backward_rows"))
    sums = None
    if wanted.anchors:
        tile = _tile("backward_anchors", inputs, choose_tile)
        sums = AnchorSums(inputs, results.g_pieces, output_grads, tile=tile, most_rows=most_rows)
    with _on_device_of(inputs.x_ND):
        for first in range(0, inputs.rows, max(most_rows, 1)):
            rows = range(first, min(first + most_rows, inputs.rows))
            backward_scores(inputs, results, output_grads, attention, rows, scores_tile)
            if wanted.x or wanted.weight:
                backward_rows(inputs, results, attention, attention_grad_g, rows, rows_tile)
                backward_entries(
                    inputs,
                    results,
                    output_grads,
                    attention_grad_g,
                    rows,
                    wanted,
                    total_grad_g_BD=total_grad_g_BD,
                    grad_weight=gradients.weight,
                    row_E=row_E,
                )
            if sums is not None:
                sums.add(attention, rows)
        if sums is not None:
            sums.write(gradients.anchors_SD)
        if wanted.x and inputs.x_ND.shape[0]:
            backward_vertices(gradients.x_ND, total_grad_g_BD, row_E, inputs.col, inputs.weight)
    return gradients


def backward_scores(
    inputs: Inputs, results: Results, output_grads: OutputGrads, attention: Attention, rows: range, tile: Tile
) -> None:
    """Writes the attention of some rows, computed anew, and the gradient of their scores."""
    grad_lse_B = output_grads.lse_B
    backward_scores_kernel[(blocks_of(tile.rows, len(rows)),)](
        inputs.anchors.pieces,
        inputs.anchors.length_S,
        results.g_pieces,
        results.readout_BD,
        results.lse_B,
        output_grads.readout_pieces,
        results.lse_B if grad_lse_B is None else grad_lse_B,
        num_rows=inputs.rows,
        num_anchors=inputs.anchors.count,
        first_row=rows.start,
        last_row=rows.stop,
        scale=inputs.scale,
        **attention.arguments("attention", "grad_score"),
        **attention_constants(tile, inputs.width, inputs.dtype),
        COSINE=inputs.cosine,
        HAS_GRAD_LSE=grad_lse_B is not None,
        INTERPRETED=inputs.interpreted,
    )


def backward_rows(
    inputs: Inputs, results: Results, attention: Attention, attention_grad_g: Tensor, rows: range, tile: Tile
) -> None:
    """Writes what the attention adds to the gradient of g, for some rows; the first of them is row 0 of the result."""
    backward_rows_kernel[(blocks_of(tile.rows, len(rows)),)](
        inputs.anchors.pieces,
        results.inverse_length_B,
        attention_grad_g_ptr=attention_grad_g,
        num_anchors=inputs.anchors.count,
        first_row=rows.start,
        last_row=rows.stop,
        scale=inputs.scale,
        **attention.arguments("grad_score"),
        **attention_constants(tile, inputs.width, inputs.dtype),
        COSINE=inputs.cosine,
        INTERPRETED=inputs.interpreted,
    )


def backward_entries(
    inputs: Inputs,
    results: Results,
    output_grads: OutputGrads,
    attention_grad_g: Tensor,
    rows: range,
    wanted: Wanted,
    *,
    total_grad_g_BD: Tensor,
    grad_weight: Tensor,
    row_E: Tensor,
) -> None:
    """Writes, for some rows and their entries, the whole gradient of g, the gradient of the weights, and the row."""
    grad_g_BD = output_grads.g_BD
    backward_entries_kernel[(len(rows),)](
        *inputs.tables(),
        results.g_pieces,
        results.g_BD if grad_g_BD is None else grad_g_BD,
        attention_grad_g,
        total_grad_g_BD,
        grad_weight,
        row_E,
        first_row=rows.start,
        **inputs.sizes(),
        **entry_constants(inputs.width, inputs.dtype),
        COSINE=inputs.cosine,
        PIECES=pieces_of(inputs.dtype),
        HAS_GRAD_G=grad_g_BD is not None,
        WANTS_GRAD_X=wanted.x,
        WANTS_GRAD_WEIGHT=wanted.weight,
    )


def backward_vertices(grad_x_ND: Tensor, total_grad_g_BD: Tensor, row_E: Tensor, col: Tensor, weight: Tensor) -> None:
    """Writes the gradient of x: the transpose of the operator times the whole gradient of g.

    Args:
        grad_x_ND: is written; entries of `col` from N on, those of the stale table, are left out.
        total_grad_g_BD: (B, D), the whole gradient of g.
        row_E: (E,) int32, the row of each entry.
        col: (E,) integers, contiguous.
        weight: (E,), contiguous.
    """
    vertices, width = grad_x_ND.shape
    vertexptr, order = entries_of_vertices(col, vertices)
    backward_vertices_kernel[(blocks_of(gather_rows(width, grad_x_ND.dtype), vertices),)](
        total_grad_g_BD,
        vertexptr,
        order,
        row_E,
        weight,
        grad_x_ND,
        num_vertices=vertices,
        **gather_constants(width, grad_x_ND.dtype),
    )


def _rows_at_a_time(anchors: int) -> int:
    row = padded_anchors(anchors)
    return max(_ATTENTION_AT_A_TIME // row, min(_LEAST_ROWS, _MOST_ATTENTION // row), 1)


def _tile(kernel: AttentionKernel, inputs: Inputs, choose_tile: ChooseTile) -> Tile:
    name, shared_bytes = (None, None) if inputs.interpreted else device_facts(inputs.x_ND.device)
    return choose_tile(
        kernel,
        width=inputs.width,
        rows=inputs.rows,
        anchors=inputs.anchors.count,
        dtype=inputs.dtype,
        device=name,
        shared_bytes=shared_bytes,
    )


@cache
def device_facts(device: torch.device) -> tuple[str, int]:
    """Returns the name of a GPU, and the bytes of shared memory that a program may have there."""
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return torch.cuda.get_device_name(device), properties["max_shared_mem"]


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
