"""The gradient of the anchors: sums over all rows, kept apart for splits of them, and added up in order."""

from __future__ import annotations

import torch
from torch import Tensor

from mmsa_kernels.hyperedge_memory.arguments import (
    Anchors,
    Attention,
    attention_constants,
    blocks_of,
    total_constants,
)
from mmsa_kernels.hyperedge_memory.attention_kernels import anchor_totals_kernel, backward_anchors_kernel
from mmsa_kernels.hyperedge_memory.tiles import Tile

_SPLIT_ANCHORS = 1 << 13
"""Splits of the rows times anchors, of either half: with 128 anchors a program 128 programs, a wave of a large GPU. A
constant, for the order of additions hangs on it."""


class AnchorSums:
    """The gradient of the anchors, summed up for splits of the rows apart; rows come some at a time."""

    def __init__(
        self,
        anchors: Anchors,
        g_pieces: Tensor,
        grad_readout_pieces: Tensor,
        *,
        most_rows: int,
        tile: Tile,
        x_ND: Tensor,
        cosine: bool,
        scale: float,
    ) -> None:
        self._anchors, self._g, self._grad_readout, self._tile = anchors, g_pieces, grad_readout_pieces, tile
        self._width, self._dtype, self._interpreted = x_ND.shape[1], x_ND.dtype, not x_ND.is_cuda
        self._cosine, self._scale = cosine, scale
        self._blocks = blocks_of(tile.anchors, anchors.count)
        row_blocks = blocks_of(tile.rows, most_rows)
        row_blocks_per_split = blocks_of(max(_SPLIT_ANCHORS // (self._blocks * tile.anchors), 1), row_blocks)
        self._rows_per_split = row_blocks_per_split * tile.rows
        self._splits = blocks_of(max(row_blocks_per_split, 1), row_blocks)
        self._partial = x_ND.new_empty(2, self._splits, anchors.count, self._width, dtype=torch.float32)

    def add(self, attention: Attention, first: int, last: int) -> None:
        """Adds what rows from the first to before the last give: at most `most_rows`, row 0 before all others."""
        backward_anchors_kernel[(self._blocks, self._splits, 2)](
            self._g,
            self._grad_readout,
            partial_ptr=self._partial,
            num_rows=self._g.shape[-2],
            num_anchors=self._anchors.count,
            first_row=first,
            last_row=last,
            rows_per_split=self._rows_per_split,
            **attention.arguments("attention", "grad_score"),
            **attention_constants(self._tile, self._width, self._dtype),
            INTERPRETED=self._interpreted,
        )

    def gradient(self, dtype: torch.dtype) -> Tensor:
        """Returns the gradient, (S, D) in a dtype."""
        gradient_SD = self._partial.new_empty(self._partial.shape[2:], dtype=dtype)
        anchor_totals_kernel[(self._anchors.count,)](
            self._partial,
            self._anchors.unit_SD,
            self._anchors.length_S,
            gradient_SD,
            num_anchors=self._anchors.count,
            num_splits=self._splits,
            scale=self._scale,
            **total_constants(self._width),
            COSINE=self._cosine,
        )
        return gradient_SD
