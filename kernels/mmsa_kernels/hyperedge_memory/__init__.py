"""Hyperedge aggregation and attention over memory anchors as one operator."""

from mmsa_kernels.hyperedge_memory.op import hyperedge_memory_attention
from mmsa_kernels.hyperedge_memory.reference import anchor_scores

__all__ = ["anchor_scores", "hyperedge_memory_attention"]
