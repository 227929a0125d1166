"""The public operator: checks its arguments and passes them to the backend that runs here.

N vertices, V stale ones, B rows of the operator G, E entries of G, S anchors, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmsa_kernels.backends import choose_backend
from mmsa_kernels.dtypes import check_dtypes
from mmsa_kernels.hyperedge_memory.reference import hyperedge_memory_attention_reference
from mmsa_kernels.hyperedge_memory.tiles import LARGEST_WIDTHS

Similarity = Literal["dot", "cosine"]


def hyperedge_memory_attention(
    x_ND: Tensor,
    rowptr: Tensor,
    col: Tensor,
    weight: Tensor,
    anchors_SD: Tensor,
    scale: float,
    *,
    similarity: Similarity = "dot",
    stale_VD: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Aggregates rows over hyperedges and attends from the result to the anchors of the memory.

    With G the B×N matrix (`rowptr`, `col`, `weight`) and m_s the anchors::

        g_i       = Σ_{e in row i} weight_e · x[col_e]
        score_is  = scale · <g_i, m_s>                 or scale · cos(g_i, m_s)
        lse_i     = log Σ_s exp(score_is)
        readout_i = Σ_s exp(score_is − lse_i) · m_s

    An empty row gives g = 0, and so equal attention to every anchor. Entries may be unsorted; repeated columns
    add up. Sums are taken in float32 for half precision inputs and in the widest input dtype otherwise.

    Args:
        x_ND: (N, D) features of the vertices, floating point.
        rowptr: (B + 1,) int32 or int64: the entries of row i are rowptr[i]:rowptr[i + 1].
        col: (E,) int32 or int64: the vertex of each entry, in 0..N-1, or in 0..N+V-1 with `stale_VD`.
        weight: (E,) floating point.
        anchors_SD: (S, D), keys and values of the attention, floating point.
        scale: positive factor on the similarity, the inverse of the temperature.
        similarity: ``dot`` or ``cosine``; the cosine of a vector no longer than 1e-8 is 0, without a
            gradient.
        stale_VD: (V, D) features of further vertices N..N+V-1 in the dtype of `x_ND`. They get no gradient. Pass the
            rows of a bank here: they are never copied, and no gradient of their size is ever stored. If `weight`
            requires a gradient, they must not change before the backward pass.

    Returns:
        g (B, D) and readout (B, D) in the dtype of `x_ND`, and lse (B,) in the dtype of the sums; all
        differentiable in `x_ND`, `weight` and `anchors_SD`.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device or a value is wrong. The values of `rowptr` and `col` are checked on CPU
            only, because on a GPU the host would have to wait for the device.
        RuntimeError: ``MMSA_KERNELS`` asks for a backend that cannot be used here.
    """
    _check_shapes(x_ND, rowptr, col, weight, anchors_SD, stale_VD)
    _check_dtypes_and_devices(x_ND, rowptr, col, weight, anchors_SD, stale_VD)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}, expected a finite number above 0")
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity: got {similarity!r}, expected 'dot' or 'cosine'")
    # To read values would break a compiled graph in two.
    if x_ND.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_indices(rowptr, col, x_ND.shape[0] + (0 if stale_VD is None else stale_VD.shape[0]))
    if choose_backend(x_ND.device.type, _beyond_triton(x_ND, weight, anchors_SD)) == "triton":
        from mmsa_kernels.hyperedge_memory.triton_op import hyperedge_memory_attention_triton as run
    else:
        run = hyperedge_memory_attention_reference
    return run(x_ND, rowptr, col, weight, anchors_SD, scale, similarity, stale_VD)


def _beyond_triton(x_ND: Tensor, weight: Tensor, anchors_SD: Tensor) -> str:
    """Returns why the kernels cannot solve this problem; empty where they can."""
    for tensor in (x_ND, weight, anchors_SD):
        if tensor.dtype not in LARGEST_WIDTHS:
            return f"its kernels take no {tensor.dtype}"
    widest = LARGEST_WIDTHS[x_ND.dtype]
    if x_ND.shape[1] > widest:
        return f"its kernels are written for D <= {widest} in {x_ND.dtype}, and here it is {x_ND.shape[1]}"
    return ""


def _check_shapes(
    x_ND: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor, anchors_SD: Tensor, stale_VD: Tensor | None
) -> None:
    if x_ND.dim() != 2:
        raise ValueError(f"x_ND: got shape {tuple(x_ND.shape)}, expected (N, D)")
    if rowptr.dim() != 1 or rowptr.numel() == 0:
        raise ValueError(f"rowptr: got shape {tuple(rowptr.shape)}, expected (B + 1,)")
    if col.dim() != 1:
        raise ValueError(f"col: got shape {tuple(col.shape)}, expected (E,)")
    if weight.shape != col.shape:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected {tuple(col.shape)} like col")
    if anchors_SD.dim() != 2 or anchors_SD.shape[0] == 0 or anchors_SD.shape[1] != x_ND.shape[1]:
        raise ValueError(
            f"anchors_SD: got shape {tuple(anchors_SD.shape)}, expected (S, {x_ND.shape[1]}) with S >= 1 and the "
            "width of x_ND"
        )
    if stale_VD is not None and (stale_VD.dim() != 2 or stale_VD.shape[1] != x_ND.shape[1]):
        raise ValueError(
            f"stale_VD: got shape {tuple(stale_VD.shape)}, expected (V, {x_ND.shape[1]}) with the width of x_ND"
        )


def _check_dtypes_and_devices(
    x_ND: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor, anchors_SD: Tensor, stale_VD: Tensor | None
) -> None:
    check_dtypes(
        indices={"rowptr": rowptr, "col": col}, values={"x_ND": x_ND, "weight": weight, "anchors_SD": anchors_SD}
    )
    if stale_VD is not None and stale_VD.dtype != x_ND.dtype:
        raise TypeError(f"stale_VD: got {stale_VD.dtype}, expected {x_ND.dtype} like x_ND")
    others = {"rowptr": rowptr, "col": col, "weight": weight, "anchors_SD": anchors_SD, "stale_VD": stale_VD}
    for name, other in others.items():
        if other is not None and other.device != x_ND.device:
            raise ValueError(f"{name}: got device {other.device}, expected {x_ND.device} like x_ND")


def _check_indices(rowptr: Tensor, col: Tensor, num_vertices: int) -> None:
    first, last = int(rowptr[0]), int(rowptr[-1])
    if (first, last) != (0, col.numel()) or bool((rowptr.diff() < 0).any()):
        raise ValueError(
            f"rowptr: got values from {first} to {last}, expected a never falling sequence from 0 to the "
            f"{col.numel()} entries of col"
        )
    if col.numel() and not (int(col.min()) >= 0 and int(col.max()) < num_vertices):
        raise ValueError(
            f"col: got values from {int(col.min())} to {int(col.max())}, expected 0 to {num_vertices - 1}, the rows "
            "of x_ND and stale_VD"
        )
