"""Fused operators for hypergraphs with a memory of anchors. Needs nothing but torch.

    from mmsa_kernels import hyperedge_memory_attention, hyperedges_from_neighbours, hypergraph_operator

    rowptr, col, _ = hyperedges_from_neighbours(neighbours_BK)
    rowptr, col, weight = hypergraph_operator(rowptr, col, num_vertices)
    g_BD, readout_BD, lse_B = hyperedge_memory_attention(x_ND, rowptr, col, weight, anchors_SD, scale=10.0)

Mathematics: ``kernels/README.md``.
"""

from mmsa_kernels.backends import Backend, available_backends
from mmsa_kernels.hyperedge_memory import anchor_scores, hyperedge_memory_attention
from mmsa_kernels.incidence import hyperedges_from_neighbours, hypergraph_operator, transpose_csr

__all__ = [
    "Backend",
    "anchor_scores",
    "available_backends",
    "hyperedge_memory_attention",
    "hyperedges_from_neighbours",
    "hypergraph_operator",
    "transpose_csr",
]
