"""Dropout that is fast on CPUs, where drawing a number for each element takes longer than the layer around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEVELS = 256  # one random byte per element


class Dropout(nn.Module):
    """Sets each element to zero with probability `p`, and scales the others by 1 / (1 - p) (Srivastava et al. 2014).

    On CPUs `p` is rounded to a multiple of 1/256, so 1/2 is exact.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with elements dropped in training mode, and `x` itself otherwise."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.p)
        dropped = min(max(round(self.p * _LEVELS), 1), _LEVELS - 1)
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * (kept.to(x.dtype) * (_LEVELS / (_LEVELS - dropped)))
