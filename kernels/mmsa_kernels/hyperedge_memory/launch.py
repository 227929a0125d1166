"""The operator on Triton: two custom ops, forward and backward, that launch the kernels.

As custom ops they are opaque to ``torch.compile`` and to activation checkpointing, which see shapes alone. Imports
triton, so it is itself imported only where that backend runs.
"""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from mmsa_kernels.hyperedge_memory.kernels import (
    backward_anchors_kernel,
    backward_rows_kernel,
    forward_kernel,
    gather_kernel,
)
from mmsa_kernels.hyperedge_memory.reference import EPS
from mmsa_kernels.hyperedge_memory.tiles import (
    AttentionKernel,
    Tile,
    attention_tile,
    gather_tile,
    is_fenced,
    padded_width,
    pieces_of,
)
from mmsa_kernels.incidence import transpose_csr

# Programs of the backward over anchors, blocks of anchors times splits of the rows. A constant, so that the order of
# additions, and with it the bits of the result, hang on sizes and tiles alone.
_ANCHOR_PROGRAMS = 256


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

    Besides the results it holds B numbers, and g once more for cosine and for float32; its backward 2 B·D, and at
    most `_ANCHOR_PROGRAMS` blocks of anchors.
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

    That is, for cosine ``scale / |g|`` of each row; and g, for cosine its direction, in the P pieces that enter
    products. They are empty where there is none, or where g is its own one piece.
    """
    x_ND, rowptr, col, weight = _rows_in_line(x_ND), rowptr.contiguous(), col.contiguous(), weight.contiguous()
    stale_VD = None if stale_VD is None else _rows_in_line(stale_VD)
    anchors = _Anchors(anchors_SD, x_ND.dtype, similarity)
    rows, width = rowptr.numel() - 1, x_ND.shape[1]
    g_BD, readout_BD, lse_B, row_scale_B, g_PBD = _forward_results(x_ND, rowptr, similarity)
    if rows:
        tile = _tile("forward", x_ND, rows, anchors)
        with _on_device_of(x_ND):
            forward_kernel[(triton.cdiv(rows, tile.rows),)](
                x_ND,
                x_ND if stale_VD is None else stale_VD,
                rowptr,
                col,
                weight,
                anchors.pieces,
                anchors.length_S,
                g_BD,
                g_PBD if len(g_PBD) else g_BD,
                readout_BD,
                lse_B,
                row_scale_B,
                num_fresh=x_ND.shape[0],
                num_rows=rows,
                num_anchors=anchors.count,
                scale=scale,
                **_strides(x_ND, stale_VD),
                **attention_blocks(tile, width, x_ND.dtype),
                **gather_blocks(tile, width, x_ND.dtype),
                COSINE=similarity == "cosine",
                INTERPRETED=not x_ND.is_cuda,
            )
    return g_BD, readout_BD, lse_B, row_scale_B, g_PBD


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
        x_ND.new_empty(pieces if pieces > 1 or cosine else 0, rows, width, dtype=_dtype_of_pieces(x_ND.dtype)),
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
    row_scale_B: Tensor,
    g_PBD: Tensor,
    wants_x: bool,
    wants_weight: bool,
    wants_anchors: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and anchors, each empty where it is not wanted."""
    x_ND, rowptr, col, weight = _rows_in_line(x_ND), rowptr.contiguous(), col.contiguous(), weight.contiguous()
    stale_VD = None if stale_VD is None else _rows_in_line(stale_VD)
    g_pieces, grad_readout_pieces = g_PBD if len(g_PBD) else g_BD, _pieces(grad_readout_BD)
    anchors = _Anchors(anchors_SD, x_ND.dtype, similarity)
    rows, width = rowptr.numel() - 1, x_ND.shape[1]
    grad_x_ND, grad_weight, grad_anchors_SD = _gradients(x_ND, weight, anchors_SD, wants_x, wants_weight, False)
    total_grad_g_BD = torch.empty_like(g_BD)
    delta_B = torch.empty_like(lse_B)
    cosine = similarity == "cosine"
    with _on_device_of(x_ND):
        if rows:
            tile = _tile("backward_rows", x_ND, rows, anchors)
            backward_rows_kernel[(triton.cdiv(rows, tile.rows),)](
                x_ND,
                x_ND if stale_VD is None else stale_VD,
                rowptr,
                col,
                anchors.pieces,
                anchors.length_S,
                g_pieces,
                readout_BD,
                lse_B,
                row_scale_B,
                g_BD if grad_g_BD is None else grad_g_BD.contiguous(),
                grad_readout_pieces,
                lse_B if grad_lse_B is None else grad_lse_B.contiguous(),
                # In float32, for what is along g in it can be large, and is taken out again.
                torch.empty_like(g_BD, dtype=torch.float32),
                total_grad_g_BD,
                delta_B,
                grad_weight,
                num_fresh=x_ND.shape[0],
                num_rows=rows,
                num_anchors=anchors.count,
                scale=scale,
                **_strides(x_ND, stale_VD),
                **attention_blocks(tile, width, x_ND.dtype),
                **gather_blocks(tile, width, x_ND.dtype),
                COSINE=cosine,
                INTERPRETED=not x_ND.is_cuda,
                HAS_GRAD_G=grad_g_BD is not None,
                HAS_GRAD_LSE=grad_lse_B is not None,
                WANTS_GRAD_WEIGHT=wants_weight,
            )
        if wants_anchors:
            grad_anchors_SD = _grad_anchors(
                anchors, g_BD, g_pieces, lse_B, grad_readout_pieces, delta_B, scale, cosine
            ).to(anchors_SD.dtype)
        if wants_x and x_ND.shape[0]:
            _grad_x(grad_x_ND, total_grad_g_BD, rowptr, col, weight)
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
    row_scale_B: Tensor,
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


def _grad_anchors(
    anchors: _Anchors,
    g_BD: Tensor,
    g_pieces: Tensor,
    lse_B: Tensor,
    grad_readout_pieces: Tensor,
    delta_B: Tensor,
    scale: float,
    cosine: bool,
) -> Tensor:
    rows, width = g_BD.shape
    tile = _tile("backward_anchors", g_BD, rows, anchors)
    blocks = triton.cdiv(anchors.count, tile.anchors)
    row_blocks = triton.cdiv(rows, tile.rows)
    blocks_per_split = max(1, triton.cdiv(row_blocks * blocks, _ANCHOR_PROGRAMS))
    splits = triton.cdiv(row_blocks, blocks_per_split)
    partial = g_BD.new_empty(splits, anchors.count, width, dtype=torch.float32)
    overlap = g_BD.new_empty(splits, anchors.count, dtype=torch.float32)
    if splits:
        backward_anchors_kernel[(blocks, splits)](
            anchors.pieces,
            anchors.length_S,
            anchors.turns_S,
            g_pieces,
            lse_B,
            grad_readout_pieces,
            delta_B,
            partial,
            overlap,
            num_rows=rows,
            num_anchors=anchors.count,
            rows_per_split=blocks_per_split * tile.rows,
            scale=scale,
            **attention_blocks(tile, width, g_BD.dtype),
            COSINE=cosine,
            INTERPRETED=not g_BD.is_cuda,
            FENCED=is_fenced("backward_anchors", width, g_BD.dtype),
        )
    grad_SD = partial.sum(dim=0)
    if cosine:  # what lengthens an anchor changes no cosine: along it, only the share of the values counts
        along_S = torch.linalg.vecdot(grad_SD, anchors.unit_SD) - overlap.sum(dim=0)
        grad_SD = (grad_SD - along_S[:, None] * anchors.unit_SD) / anchors.length_S[:, None]
    return grad_SD


def _grad_x(grad_x_ND: Tensor, total_grad_g_BD: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor) -> None:
    """Fills the gradient of x by the transpose of the operator, whose entries in the stale table are left out."""
    vertices, width = grad_x_ND.shape
    vertexptr, row, order = transpose_csr(rowptr, col, vertices)
    tile = gather_tile(width, grad_x_ND.dtype)
    gather_kernel[(triton.cdiv(vertices, tile.rows),)](
        total_grad_g_BD,
        vertexptr,
        row,
        weight[order],
        grad_x_ND,
        num_rows=vertices,
        D=width,
        GM=tile.rows,
        BD=padded_width(width),
        UNROLL=tile.unroll,
        num_warps=tile.warps,
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
    x_ND, rowptr, col, weight, anchors_SD, stale_VD, g_BD, readout_BD, lse_B, row_scale_B, g_PBD = ctx.saved_tensors
    grad_g_BD, grad_readout_BD, grad_lse_B, _, _ = grads
    wants = [ctx.needs_input_grad[number] for number in (0, 3, 4)]
    results = _backward(
        grad_g_BD,
        torch.zeros_like(readout_BD) if grad_readout_BD is None else grad_readout_BD,
        grad_lse_B,
        x_ND,
        rowptr,
        col,
        weight,
        anchors_SD,
        ctx.scale,
        ctx.similarity,
        stale_VD,
        g_BD,
        readout_BD,
        lse_B,
        row_scale_B,
        g_PBD,
        *wants,
    )
    grad_x, grad_weight, grad_anchors = (
        result if wanted else None for result, wanted in zip(results, wants, strict=True)
    )
    return grad_x, None, None, grad_weight, grad_anchors, None, None, None


def _no_second_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "hyperedge_memory_attention: its Triton backend has no second derivative; set MMSA_KERNELS=reference, which "
        "is differentiable as often as you like"
    )


_forward.register_autograd(_call_backward, setup_context=_save_for_backward)
_backward.register_autograd(_no_second_backward)


class _Anchors:
    """Anchors as the kernels take them: rounded to the dtype of x; for cosine as unit vectors and their lengths."""

    def __init__(self, anchors_SD: Tensor, dtype: torch.dtype, similarity: str) -> None:
        anchors_SD = anchors_SD.contiguous()
        self.count = anchors_SD.shape[0]
        self.length_S = self.turns_S = anchors_SD  # not read
        if similarity == "cosine":
            anchors_SD = anchors_SD.float()
            length_S1 = torch.linalg.vector_norm(anchors_SD, dim=1, keepdim=True)
            has_direction_S1 = length_S1 > EPS
            length_S1 = torch.where(has_direction_S1, length_S1, 1.0)
            self.unit_SD = anchors_SD = torch.where(has_direction_S1, anchors_SD / length_S1, 0.0)
            self.length_S = length_S1.squeeze(1)
            self.turns_S = has_direction_S1.squeeze(1).float()  # whether its cosines change with it
        self.pieces = _pieces(anchors_SD.to(dtype))


def _tile(kernel: AttentionKernel, x: Tensor, rows: int, anchors: _Anchors) -> Tile:
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


def _rows_in_line(x: Tensor) -> Tensor:
    """Returns x, copied where the numbers of a row do not lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(x_ND: Tensor, stale_VD: Tensor | None) -> dict[str, Any]:
    return {
        "X_STRIDE": x_ND.stride(0),
        "STALE_STRIDE": 0 if stale_VD is None else stale_VD.stride(0),
        "HAS_STALE": stale_VD is not None,
    }


def attention_blocks(tile: Tile, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the constants of an attention kernel."""
    return {
        "D": width,
        "BM": tile.rows,
        "BN": tile.anchors,
        "BD": padded_width(width),
        "STAGES": tile.stages,
        "PIECES": pieces_of(dtype),
        "num_warps": tile.warps,
    }


def gather_blocks(tile: Tile, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Returns the further constants of one that gathers too."""
    gather = gather_tile(width, dtype, tile.warps)
    return {"GM": min(gather.rows, tile.rows), "UNROLL": gather.unroll}


def _dtype_of_pieces(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype == torch.float32 else dtype


def _pieces(x: Tensor) -> Tensor:
    """Returns the planes of half precision that x is the sum of: x itself, or (3, ...) bfloat16 for float32."""
    if pieces_of(x.dtype) == 1:
        return x.contiguous()
    first = x.bfloat16()
    second = (x - first).bfloat16()
    return torch.stack([first, second, (x - first - second).bfloat16()])


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
