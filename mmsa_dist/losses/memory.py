"""Alignment of the structure-aware embedding with its read-out from the memory.

B molecules of this rank, D width.
"""

from __future__ import annotations

from torch import Tensor

from mmsa_dist.losses.averaging import mean_of_present
from mmsa_dist.losses.contrast import info_nce


def memory_loss(g_BD: Tensor, readout_BD: Tensor, temperature: float, present_B: Tensor) -> Tensor:
    """Returns L_memory = MSE(g, readout) + InfoNCE(g, readout).

    The squared error alone is zero if all molecules and anchors are zero; discriminating a molecule's
    read-out from those of the others, on all ranks, rules that out.

    Args:
        g_BD: (B, D) structure-aware embeddings.
        readout_BD: (B, D) read-outs from the memory.
        temperature: of the contrastive term; divides the cosine similarity.
        present_B: (B,) bool: molecules that have a modality. Others have no embedding: they neither count nor are
            they negatives.

    Returns:
        () scalar, to be averaged over ranks.
    """
    squared_error_B = (g_BD - readout_BD).square().mean(dim=1)
    return mean_of_present(squared_error_B, present_B) + info_nce(g_BD, readout_BD, temperature, present_B=present_B)
