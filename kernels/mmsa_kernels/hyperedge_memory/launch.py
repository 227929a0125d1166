"""The operator on Triton: two custom ops, forward and backward, that launch the kernels.

As custom ops they are opaque to ``torch.compile`` and to activation checkpointing, which see shapes alone. Imports
triton, so it is itself imported only where that backend runs.
"""

from __future__ import annotations

import contextlib
from functools import cache, partial
from typing import Any

import torch
import triton
from torch import Tensor

from mmsa_kernels.hyperedge_memory.anchor_sums import AnchorSums
from mmsa_kernels.hyperedge_memory.arguments import (
    Anchors,
    Attention,
    attention_constants,
    blocks_of,
    dtype_of_pieces,
    entry_constants,
    gather_constants,
    in_pieces,
    padded_anchors,
    rows_in_line,
    strides,
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
from mmsa_kernels.hyperedge_memory.tiles import AttentionKernel, Tile, attention_tile, gather_rows, pieces_of
from mmsa_kernels.hyperedge_memory.transpose import entries_of_vertices

# Constants, so that the order of additions, and with it the bits of the result, hang on sizes and tiles alone.
_ATTENTION_AT_A_TIME = 1 << 25
"""Numbers of attention, rows times anchors, that the backward keeps at once, and as many gradients of scores."""
_LEAST_ROWS, _MOST_ATTENTION = 1 << 14, 1 << 28
"""But not fewer rows than a large GPU has room for in one go, as long as this many numbers suffice for them."""


def hyperedge_memory_attention_triton(
    x_ND: Tensor,
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    anchors_SD: Tensor,
    scale: float,
    similarity: str,
    stale_VD: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator of `mmsa_kernels.hyperedge_memory_attention` without its argument checks.

    Besides the results it holds g once more for cosine, and in three half planes for float32. Its backward takes
    another B·D numbers and 12 bytes an entry; and of `_rows_at_a_time` rows at once the attention, the gradient of the
    scores and, in float32, the gradient of g.
    """
    g_BD, readout_BD, lse_B, _, _ = _forward(x_ND, rowptr, col, weight, anchors_SD, scale, similarity, stale_VD)
    return g_BD, readout_BD, lse_B


@torch.library.custom_op("mmsa::hyperedge_memory_attention", mutates_args=())
def _forward(
    x_ND: Tensor,
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    anchors_SD: Tensor,
    scale: float,
    similarity: str,
    stale_VD: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns g, readout, lse, and what the backward needs again.

    That is, for cosine ``1 / |g|`` of each row; and g, for cosine its direction, in the P pieces that enter
    products. They are empty where there is none, or where g is its own one piece.
    """
    x_ND, rowptr, col, weight = rows_in_line(x_ND), rowptr.contiguous(), col.contiguous(), weight.contiguous()
    stale_VD = None if stale_VD is None else rows_in_line(stale_VD)
    anchors = Anchors(anchors_SD, x_ND.dtype, similarity)
    rows, width = rowptr.numel() - 1, x_ND.shape[1]
    g_BD, readout_BD, lse_B, inverse_length_B, g_PBD = _forward_results(x_ND, rowptr, similarity)
    if rows:
        tile = _tile("forward", x_ND, rows, anchors)
        g_pieces = g_PBD if len(g_PBD) else g_BD
        with _on_device_of(x_ND):
            aggregate_kernel[(blocks_of(gather_rows(width, x_ND.dtype), rows),)](
                x_ND,
                x_ND if stale_VD is None else stale_VD,
                rowptr,
                col,
                weight,
                g_BD,
                g_pieces,
                inverse_length_B,
                num_fresh=x_ND.shape[0],
                num_rows=rows,
                **strides(x_ND, stale_VD),
                **gather_constants(width, x_ND.dtype),
                COSINE=similarity == "cosine",
                PIECES=pieces_of(x_ND.dtype),
            )
            forward_kernel[(blocks_of(tile.rows, rows),)](
                anchors.pieces,
                anchors.length_S,
                g_pieces,
                readout_BD,
                lse_B,
                num_rows=rows,
                num_anchors=anchors.count,
                scale=scale,
                **attention_constants(tile, width, x_ND.dtype),
                COSINE=similarity == "cosine",
                INTERPRETED=not x_ND.is_cuda,
            )
    return g_BD, readout_BD, lse_B, inverse_length_B, g_PBD


@_forward.register_fake
def _(
    x_ND: Tensor,
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    anchors_SD: Tensor,
    scale: float,
    similarity: str,
    stale_VD: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _forward_results(x_ND, rowptr, similarity)


def _forward_results(x_ND: Tensor, rowptr: Tensor, similarity: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows, width = rowptr.shape[0] - 1, x_ND.shape[1]
    pieces, cosine = pieces_of(x_ND.dtype), similarity == "cosine"
    return (
        x_ND.new_empty(rows, width),
        x_ND.new_empty(rows, width),
        x_ND.new_empty(rows, dtype=torch.float32),
        x_ND.new_empty(rows if cosine else 0, dtype=torch.float32),
        x_ND.new_empty(pieces if pieces > 1 or cosine else 0, rows, width, dtype=dtype_of_pieces(x_ND.dtype)),
    )


@torch.library.custom_op("mmsa::hyperedge_memory_attention_backward", mutates_args=())
def _backward(
    grad_g_BD: Tensor | None,
    grad_readout_BD: Tensor,
    grad_lse_B: Tensor | None,
    x_ND: Tensor,
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    anchors_SD: Tensor,
    scale: float,
    similarity: str,
    stale_VD: Tensor | None,
    g_BD: Tensor,
    readout_BD: Tensor,
    lse_B: Tensor,
    inverse_length_B: Tensor,
    g_PBD: Tensor,
    wants_x: bool,
    wants_weight: bool,
    wants_anchors: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and anchors, each empty where it is not wanted."""
    x_ND, rowptr, col, weight = rows_in_line(x_ND), rowptr.contiguous(), col.contiguous(), weight.contiguous()
    stale_VD = None if stale_VD is None else rows_in_line(stale_VD)
    rows, width, cosine = rowptr.numel() - 1, x_ND.shape[1], similarity == "cosine"
    grad_x_ND, grad_weight, grad_anchors_SD = _gradients(x_ND, weight, anchors_SD, wants_x, wants_weight, False)
    anchors = Anchors(anchors_SD, x_ND.dtype, similarity)
    grad_g_BD, grad_lse_B = (None if grad is None else grad.contiguous() for grad in (grad_g_BD, grad_lse_B))
    g_pieces, grad_readout_pieces = g_PBD if len(g_PBD) else g_BD, in_pieces(grad_readout_BD)
    constants = partial(attention_constants, width=width, dtype=x_ND.dtype)
    scores_tile, rows_tile = (_tile(kernel, x_ND, rows, anchors) for kernel in ("backward_scores", "backward_rows"))
    most_rows = min(rows, _rows_at_a_time(anchors.count))
    attention = Attention(most_rows, anchors.count, g_BD)
    # In float32, for what is along g in it can be large, and is taken out again.
    attention_grad_g = g_BD.new_empty(most_rows, width, dtype=torch.float32)
    total_grad_g_BD = torch.empty_like(g_BD) if wants_x else g_BD
    row_E = torch.empty_like(col, dtype=torch.int32) if wants_x else col
    sums = AnchorSums(
        anchors,
        g_pieces,
        grad_readout_pieces,
        most_rows=most_rows if wants_anchors else 0,
        tile=_tile("backward_anchors", x_ND, rows, anchors),
        x_ND=x_ND,
        cosine=cosine,
        scale=scale,
    )
    with _on_device_of(x_ND):
        for first in range(0, rows, max(most_rows, 1)):
            last = min(first + most_rows, rows)
            backward_scores_kernel[(blocks_of(scores_tile.rows, last - first),)](
                anchors.pieces,
                anchors.length_S,
                g_pieces,
                readout_BD,
                lse_B,
                grad_readout_pieces,
                lse_B if grad_lse_B is None else grad_lse_B,
                num_rows=rows,
                num_anchors=anchors.count,
                first_row=first,
                last_row=last,
                scale=scale,
                **attention.arguments("attention", "grad_score"),
                **constants(scores_tile),
                COSINE=cosine,
                HAS_GRAD_LSE=grad_lse_B is not None,
                INTERPRETED=not x_ND.is_cuda,
            )
            if wants_x or wants_weight:
                backward_rows_kernel[(blocks_of(rows_tile.rows, last - first),)](
                    anchors.pieces,
                    inverse_length_B,
                    attention_grad_g_ptr=attention_grad_g,
                    num_anchors=anchors.count,
                    first_row=first,
                    last_row=last,
                    scale=scale,
                    **attention.arguments("grad_score"),
                    **constants(rows_tile),
                    COSINE=cosine,
                    INTERPRETED=not x_ND.is_cuda,
                )
                backward_entries_kernel[(last - first,)](
                    x_ND,
                    x_ND if stale_VD is None else stale_VD,
                    rowptr,
                    col,
                    g_pieces,
                    g_BD if grad_g_BD is None else grad_g_BD,
                    attention_grad_g,
                    total_grad_g_BD,
                    grad_weight,
                    row_E,
                    num_fresh=x_ND.shape[0],
                    num_rows=rows,
                    first_row=first,
                    **strides(x_ND, stale_VD),
                    **entry_constants(width, x_ND.dtype),
                    COSINE=cosine,
                    PIECES=pieces_of(x_ND.dtype),
                    HAS_GRAD_G=grad_g_BD is not None,
                    WANTS_GRAD_X=wants_x,
                    WANTS_GRAD_WEIGHT=wants_weight,
                )
            if wants_anchors:
                sums.add(attention, first, last)
        if wants_anchors:
            grad_anchors_SD = sums.gradient(anchors_SD.dtype)
        if wants_x and x_ND.shape[0]:
            _grad_x(grad_x_ND, total_grad_g_BD, row_E, col, weight)
    return grad_x_ND, grad_weight, grad_anchors_SD


@_backward.register_fake
def _(
    grad_g_BD: Tensor | None,
    grad_readout_BD: Tensor,
    grad_lse_B: Tensor | None,
    x_ND: Tensor,
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    anchors_SD: Tensor,
    scale: float,
    similarity: str,
    stale_VD: Tensor | None,
    g_BD: Tensor,
    readout_BD: Tensor,
    lse_B: Tensor,
    inverse_length_B: Tensor,
    g_PBD: Tensor,
    wants_x: bool,
    wants_weight: bool,
    wants_anchors: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(x_ND, weight, anchors_SD, wants_x, wants_weight, wants_anchors)


def _gradients(
    x_ND: Tensor, weight: Tensor, anchors_SD: Tensor, wants_x: bool, wants_weight: bool, wants_anchors: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x_ND.new_empty(x_ND.shape if wants_x else (0,)),
        weight.new_empty(weight.shape if wants_weight else (0,)),
        anchors_SD.new_empty(anchors_SD.shape if wants_anchors else (0,)),
    )


def _grad_x(grad_x_ND: Tensor, total_grad_g_BD: Tensor, row_E: Tensor, col: Tensor, weight: Tensor) -> None:
    """Fills the gradient of x by the transpose of the operator, whose entries in the stale table are left out."""
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


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_ND, rowptr, col, weight, anchors_SD, scale, similarity, stale_VD = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[3:])
    # Only the gradient of the weights looks at the bank again, which may have moved on by then.
    stale_VD = stale_VD if ctx.needs_input_grad[3] else None
    ctx.save_for_backward(x_ND, rowptr, col, weight, anchors_SD, stale_VD, *output)
    ctx.scale, ctx.similarity = scale, similarity


def _call_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    x_ND, rowptr, col, weight, anchors_SD, stale_VD, *results = ctx.saved_tensors
    grad_g_BD, grad_readout_BD, grad_lse_B, _, _ = grads
    wants = [ctx.needs_input_grad[number] for number in (0, 3, 4)]
    gradients = _backward(
        grad_g_BD,
        torch.zeros_like(results[1]) if grad_readout_BD is None else grad_readout_BD,
        grad_lse_B,
        x_ND,
        rowptr,
        col,
        weight,
        anchors_SD,
        ctx.scale,
        ctx.similarity,
        stale_VD,
        *results,
        *wants,
    )
    grad_x, grad_weight, grad_anchors = (
        gradient if wanted else None for gradient, wanted in zip(gradients, wants, strict=True)
    )
    return grad_x, None, None, grad_weight, grad_anchors, None, None, None


def _no_second_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "hyperedge_memory_attention: its Triton backend has no second derivative; set MMSA_KERNELS=reference, which "
        "is differentiable as often as you like"
    )


_forward.register_autograd(_call_backward, setup_context=_save_for_backward)
_backward.register_autograd(_no_second_backward)


def _rows_at_a_time(anchors: int) -> int:
    row = padded_anchors(anchors)
    return max(_ATTENTION_AT_A_TIME // row, min(_LEAST_ROWS, _MOST_ATTENTION // row), 1)


def _tile(kernel: AttentionKernel, x: Tensor, rows: int, anchors: Anchors) -> Tile:
    name = shared_bytes = None
    if x.is_cuda:
        name, shared_bytes = device_facts(x.device)
    return attention_tile(
        kernel,
        width=x.shape[1],
        rows=rows,
        anchors=anchors.count,
        dtype=x.dtype,
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
