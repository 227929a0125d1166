"""Structure awareness of a batch: hypergraph convolution over molecules, then the memory.

B molecules in a batch, K neighbours of each, V stale neighbours outside it, N = B + V vertices, C width of u, D width
of g.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsa_dist.config.schema import Structure
from mmsa_dist.runtime.onednn import linear
from mmsa_dist.structure.memory import Memory
from mmsa_dist.structure.sources import Neighbours
from mmsa_kernels import hyperedges_from_neighbours, hypergraph_operator


class StructureOutput(NamedTuple):
    """Output of the structure layer for B molecules, in float32 or wider."""

    g_BD: Tensor
    """(B, D): structure-aware embeddings."""
    readout_BD: Tensor
    """(B, D): read-outs of the memory: anchors weighted by the attention of each molecule."""
    lse_B: Tensor
    """(B,): log-sum-exp of the scores against the anchors."""


class StructureLayer(nn.Module):
    """g = G · (X Θ) over the hypergraph of a batch (HGNN, Feng et al. 2019), and its read-out of the memory.

    Hyperedge e_i holds molecule i with membership 1 and its neighbours with exp(-d² / (bandwidth · spread)), d their
    distance in u when the index was built and spread the mean of d² over pairs of molecules: the probabilistic
    incidence of HGNN's published code, whose unit does not depend on the batch but on all molecules searched. Computes
    in float32 whatever the surrounding precision.

    Args:
        code: C, width of the unified embedding u.
        options: section ``model.structure`` of the configuration.
    """

    def __init__(self, code: int, options: Structure) -> None:
        super().__init__()
        self.width = options.width
        self.theta = _WideLinear(code, options.width, bias=False)
        # Under torch's initialization a square map would shrink a fifth of the directions of u to less than a fifth of
        # the largest, and training does not change that.
        nn.init.orthogonal_(self.theta.weight)
        self.memory = Memory(
            options.anchors, options.width, similarity=options.similarity, temperature=options.temperature
        )
        self._normalization, self._bandwidth = options.normalization, options.bandwidth

    def forward(self, u_BC: Tensor, neighbours: Neighbours, *, isolated: bool = False) -> StructureOutput:
        """Returns the structure-aware embeddings of a batch.

        Args:
            u_BC: (B, C) unified embeddings of the batch.
            neighbours: of the batch; its rows outside the batch carry no gradient, but Θ learns from them.
            isolated: a molecule uses its own hyperedge only, as if it were alone in the batch, for inference.
                Otherwise it also uses the hyperedges of others that contain it.
        """
        membership_BK = None
        if self._bandwidth:
            # Molecules without any spread are all the same: those at no distance are members, others are not.
            unit = (self._bandwidth * neighbours.spread).clamp(min=torch.finfo(torch.float64).tiny)
            membership_BK = (-neighbours.distances_BK / unit).exp().float()
        rowptr, col, membership = hyperedges_from_neighbours(neighbours.vertices_BK, membership_BK)
        num_vertices = len(u_BC) + len(neighbours.stale_VC)
        if isolated:
            # The operator of one hyperedge: a member's degree is its membership, which is 1 for the molecule itself.
            size_B = torch.segment_reduce(membership, "sum", offsets=rowptr, axis=0)
            walk = self._normalization == "random_walk"
            weight = (membership if walk else membership.sqrt()) / size_B.repeat_interleave(
                rowptr.diff(), output_size=len(col)
            )
        else:
            rowptr, col, weight = hypergraph_operator(
                rowptr,
                col,
                num_vertices,
                normalization=self._normalization,
                membership=membership,
                num_rows=len(u_BC),
            )
        with torch.autocast(u_BC.device.type, enabled=False):
            wide = torch.promote_types(u_BC.dtype, torch.float32)
            x_ND = self.theta(torch.cat([u_BC.to(wide), neighbours.stale_VC.to(wide)]))
            return StructureOutput(*self.memory(x_ND, rowptr, col, weight))


class _WideLinear(nn.Linear):
    """A linear map that computes in the precision of its input, even if its weights are in bf16."""

    def forward(self, x_NC: Tensor) -> Tensor:
        return linear(x_NC, self.weight.to(x_NC.dtype), None)
