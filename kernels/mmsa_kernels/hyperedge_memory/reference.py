"""The operator in plain PyTorch: what faster backends are tested against, and what runs on CPU.

N vertices, V stale ones, B rows of the operator G, E entries of G, S anchors, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-8
"""Vectors no longer than this have no direction: their cosine with everything is 0, without a gradient."""


def hyperedge_memory_attention_reference(
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

    Autograd differentiates it in `x_ND`, `weight` and `anchors_SD`. Besides the results it stores B·S numbers (the
    scores), and E·D (the gathered rows) where `x_ND` is narrower than the sums. On CPU every run gives the same bits.
    """
    dtype, precision = x_ND.dtype, torch.float32
    for tensor in (x_ND, weight, anchors_SD):
        precision = torch.promote_types(precision, tensor.dtype)
    weight = weight.to(precision)
    # Autocast would compute the products in half precision.
    with torch.autocast(x_ND.device.type, enabled=False):
        if stale_VD is None:
            g_BD = _weighted_sums(x_ND, rowptr, col, weight)
        else:
            fresh_E = col < x_ND.shape[0]
            stale = _entries(rowptr, col - x_ND.shape[0], weight, ~fresh_E)
            g_BD = _weighted_sums(x_ND, *_entries(rowptr, col, weight, fresh_E))
            g_BD = g_BD + _weighted_sums(stale_VD.detach(), *stale)
        anchors_SD = anchors_SD.to(precision)
        scores_BS = anchor_scores(g_BD, anchors_SD, scale, similarity)
        # A sum over anchors: the published code takes the mean, which is S times smaller.
        readout_BD = scores_BS.softmax(dim=1) @ anchors_SD
        lse_B = scores_BS.logsumexp(dim=1)
    return g_BD.to(dtype), readout_BD.to(dtype), lse_B


def _entries(rowptr: Tensor, col: Tensor, weight: Tensor, chosen_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the CSR matrix of some of the entries."""
    before = functional.pad(chosen_E.cumsum(0), (1, 0))  # how many entries are chosen before each
    return before[rowptr], col[chosen_E], weight[chosen_E]


def _weighted_sums(x_ND: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted sums of rows, (B, D), in the dtype of `weight`."""
    if x_ND.shape[0] == 0:  # no entry refers to this table: zeros that still depend on x
        return x_ND.to(weight.dtype).sum(dim=0).expand(rowptr.numel() - 1, -1)
    if x_ND.dtype != weight.dtype:  # widens the rows that are used, not all N
        x_ND = x_ND.index_select(0, col).to(weight.dtype)
        col = torch.arange(col.numel(), dtype=col.dtype, device=col.device)
    # Gathers, weights and adds in one pass, without the E·D messages that index_add would need.
    return functional.embedding_bag(
        col, x_ND, rowptr.to(col.dtype), mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def anchor_scores(g_BD: Tensor, anchors_SD: Tensor, scale: float, similarity: str) -> Tensor:
    """Returns the similarity of each row to each anchor: the logits of the attention over anchors.

    Args:
        g_BD: (B, D) floating point.
        anchors_SD: (S, D), in the same dtype and on the same device.
        scale: factor on the similarity, the inverse of the temperature.
        similarity: ``dot`` for <g, m>, ``cosine`` for <g, m> / (|g| |m|).

    Returns:
        (B, S). The cosine of a vector no longer than 1e-8 is 0 and passes no gradient.
    """
    if similarity == "cosine":
        g_BD, anchors_SD = _direction(g_BD), _direction(anchors_SD)
    return scale * (g_BD @ anchors_SD.T)


def _direction(x_BD: Tensor) -> Tensor:
    """Scales rows to unit length, and rows without a direction to zero, both with finite gradients."""
    square_B1 = x_BD.square().sum(dim=1, keepdim=True)
    no_direction_B1 = square_B1 <= EPS**2  # of NaN neither this nor its opposite holds, and it must stay NaN
    # The inner `where` keeps the gradient of the square root away from zero, where it is infinite.
    length_B1 = torch.where(no_direction_B1, 1.0, square_B1).sqrt()
    return torch.where(no_direction_B1, 0.0, x_BD / length_B1)
