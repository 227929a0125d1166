"""Alignment of the structure-aware embedding with its read-out from the memory.

B molecules of this rank, D width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mmsa_dist.losses.contrast import info_nce


def memory_loss(g_BD: Tensor, readout_BD: Tensor, temperature: float) -> Tensor:
    """Returns L_memory = MSE(g, readout) + InfoNCE(g, readout).

    The squared error alone is zero if all molecules and anchors are zero; discriminating a molecule's
    read-out from those of the others, on all ranks, rules that out.

    Args:
        g_BD: (B, D) structure-aware embeddings.
        readout_BD: (B, D) read-outs from the memory.
        temperature: of the contrastive term; divides the cosine similarity.

    Returns:
        () scalar, to be averaged over ranks.
    """
    return functional.mse_loss(g_BD, readout_BD) + info_nce(g_BD, readout_BD, temperature)
