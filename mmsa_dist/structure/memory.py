"""The memory: anchors that represent typical molecules, and metrics of whether they are used.

B molecules in a batch, N vertices of its hypergraph, W ranks, S anchors, D width.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmsa_dist.runtime.distributed import all_reduce_mean, world_size
from mmsa_kernels import anchor_scores, hyperedge_memory_attention


class Memory(nn.Module):
    """S anchors of width D that molecules attend to.

    Anchors are initialized as independent normal vectors of length about one: nearly orthogonal, none favoured.

    Args:
        anchors: S.
        width: D.
        similarity: ``dot`` or ``cosine``.
        temperature: divides the similarity.
    """

    def __init__(self, anchors: int, width: int, *, similarity: Literal["dot", "cosine"], temperature: float) -> None:
        super().__init__()
        self.anchors_SD = nn.Parameter(torch.randn(anchors, width) * width**-0.5)
        self.similarity: Literal["dot", "cosine"] = similarity
        self.scale = 1 / temperature

    def forward(self, x_ND: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Aggregates rows of `x_ND` with the CSR operator and computes their read-outs of the memory.

        Returns:
            g (B, D), readout (B, D), lse (B,): see `mmsa_kernels.hyperedge_memory_attention`.
        """
        return hyperedge_memory_attention(
            x_ND, rowptr, col, weight, self.anchors_SD, self.scale, similarity=self.similarity
        )

    @torch.no_grad()
    def meters(self, g_BD: Tensor, lse_B: Tensor, present_B: Tensor) -> dict[str, float]:
        """Returns metrics that reveal a collapse, over the present molecules of all ranks (collective).

        - ``memory/anchor_entropy``: entropy of the mean attention over log S: 1 if all anchors are used equally,
          0 if only one is.
        - ``memory/effective_anchors``: exp of that entropy, in anchors.
        - ``memory/dead_anchors``: see `dead_anchors`.
        - ``memory/g_norm``: mean length of g.
        - ``memory/g_cosine``: mean cosine of two different rows of g; NaN if there is only one.

        All are NaN if no rank has a present molecule.

        Args:
            g_BD: (B, D); B may differ between ranks.
            lse_B: (B,) log-sum-exp of the scores of `g_BD`.
            present_B: (B,) bool: molecules with an embedding. The others, whose g is 0, attend to all anchors alike.
        """
        with torch.autocast(g_BD.device.type, enabled=False):
            g_BD, lse_B = g_BD[present_B].float(), lse_B[present_B].float()
            scores_BS = anchor_scores(g_BD, self.anchors_SD.float(), self.scale, self.similarity)
            direction_BD = nn.functional.normalize(g_BD, dim=1)
            sums = (
                direction_BD.sum(dim=0),
                direction_BD.square().sum()[None],
                g_BD.norm(dim=1).sum()[None],
                (scores_BS - lse_B[:, None]).exp().sum(dim=0),
                g_BD.new_tensor([len(g_BD)]),
            )
        total = all_reduce_mean(torch.cat([part.double() for part in sums]))
        rows = round(float(total[-1]) * world_size())
        direction_D, square, norm, usage_S = (total[:-1] / total[-1]).split([part.numel() for part in sums[:-1]])
        entropy = float(-torch.xlogy(usage_S, usage_S).sum())
        # Σ_{i≠j} <ĝ_i, ĝ_j> = |Σ ĝ_i|² − Σ |ĝ_i|², without the B² products.
        cosine = (rows * float(direction_D.square().sum()) - float(square)) / (rows - 1) if rows > 1 else torch.nan
        return {
            "memory/anchor_entropy": entropy / math.log(len(usage_S)) if len(usage_S) > 1 else 1.0,
            "memory/effective_anchors": math.exp(entropy),
            "memory/dead_anchors": float(dead_anchors(usage_S)),
            "memory/g_norm": float(norm),
            "memory/g_cosine": cosine,
        }


def dead_anchors(usage_S: Tensor | NDArray[np.floating]) -> int:
    """Returns how many of S anchors get less than a tenth of the mean attention, 1 / S.

    Args:
        usage_S: (S,) mean attention of each anchor over molecules; the sum is 1.
    """
    return int((usage_S < 0.1 / len(usage_S)).sum())
