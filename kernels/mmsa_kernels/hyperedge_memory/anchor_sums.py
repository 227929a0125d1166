"""The gradient of the anchors: a sum over all rows, kept in parts for splits of them, which are added up in order."""

from __future__ import annotations

import torch
from torch import Tensor

from mmsa_kernels.hyperedge_memory.arguments import (
    Attention,
    Inputs,
    OutputGrads,
    attention_constants,
    blocks_of,
    total_constants,
)
from mmsa_kernels.hyperedge_memory.attention_kernels import anchor_totals_kernel, backward_anchors_kernel
from mmsa_kernels.hyperedge_memory.tiles import Tile

_SPLIT_ANCHORS = 1 << 13
"""Splits of the rows times anchors, for each of the two products: with 128 anchors a program that is 128 programs, one
wave of a large GPU. A constant, because the order of additions depends on it."""


class AnchorSums:
    """The partial sums of the gradient of the anchors, one for each split of the rows.

    Args:
        inputs: of the call.
        g_pieces: g as it enters products.
        output_grads: of the call.
        tile: of `backward_anchors_kernel`.
        most_rows: that `add` is given at once.
    """

    def __init__(
        self, inputs: Inputs, g_pieces: Tensor, output_grads: OutputGrads, *, tile: Tile, most_rows: int
    ) -> None:
        self._inputs, self._g_pieces, self._output_grads, self._tile = inputs, g_pieces, output_grads, tile
        anchors = inputs.anchors.count
        self._blocks = blocks_of(tile.anchors, anchors)
        row_blocks = blocks_of(tile.rows, most_rows)
        row_blocks_per_split = blocks_of(max(_SPLIT_ANCHORS // (self._blocks * tile.anchors), 1), row_blocks)
        self._rows_per_split = row_blocks_per_split * tile.rows
        self._splits = blocks_of(max(row_blocks_per_split, 1), row_blocks)
        self._partial = inputs.x_ND.new_empty(2, self._splits, anchors, inputs.width, dtype=torch.float32)

    def add(self, attention: Attention, rows: range) -> None:
        """Adds what some rows contribute; the rows that begin at 0 come first, and set the sums."""
        inputs = self._inputs
        backward_anchors_kernel[(self._blocks, self._splits, 2)](
            self._g_pieces,
            self._output_grads.readout_pieces,
            partial_ptr=self._partial,
            num_rows=inputs.rows,
            num_anchors=inputs.anchors.count,
            first_row=rows.start,
            last_row=rows.stop,
            rows_per_split=self._rows_per_split,
            **attention.arguments("attention", "grad_score"),
            **attention_constants(self._tile, inputs.width, inputs.dtype),
            INTERPRETED=inputs.interpreted,
        )

    def write(self, grad_anchors_SD: Tensor) -> None:
        """Writes the gradient of the anchors: the sum over all splits."""
        anchors = self._inputs.anchors
        anchor_totals_kernel[(anchors.count,)](
            self._partial,
            anchors.unit_SD,
            anchors.length_S,
            grad_anchors_SD,
            num_anchors=anchors.count,
            num_splits=self._splits,
            scale=self._inputs.scale,
            **total_constants(self._inputs.width),
            COSINE=self._inputs.cosine,
        )
