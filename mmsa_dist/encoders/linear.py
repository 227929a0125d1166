"""`torch.nn.Linear` by oneDNN where that is faster: in float32 on CPUs.

PyTorch multiplies float32 matrices by MKL, which on AMD's processors leaves half of the vector units idle,
while oneDNN, which PyTorch carries for its convolutions, does not. On one core of an AMD EPYC with AVX-512,
at the sizes of our encoders: 100 GFLOP/s by MKL, 220 by oneDNN, with the same rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Linear(nn.Linear):
    """A drop-in for `torch.nn.Linear`: the same parameters, and the same values but for rounding."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """Returns x Wᵀ + b, (N, out) for (N, in)."""
        if _by_onednn(x_ND, self.weight):
            return _OneDnnLinear.apply(x_ND, self.weight, self.bias)
        return super().forward(x_ND)


def _by_onednn(x_ND: Tensor, weight_OD: Tensor) -> bool:
    """Whether oneDNN is there and both are plain float32 matrices on a CPU, at least one row of them."""
    return (
        x_ND.device.type == "cpu"
        and x_ND.dtype == weight_OD.dtype == torch.float32
        and x_ND.dim() == 2
        and len(x_ND) > 0
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
        x_RD = _padded(x_ND)
        ctx.save_for_backward(x_RD, weight_OD)
        return _product(x_RD, weight_OD, bias_O)[: len(x_ND)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_RD, weight_OD = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        grad_RO = _padded(grad_NO)
        return (
            _product(grad_RO, weight_OD.T)[: len(grad_NO)] if for_x else None,
            _product(grad_RO.T, x_RD.T) if for_weight else None,
            grad_NO.sum(dim=0) if for_bias else None,
        )


def _padded(x_ND: Tensor) -> Tensor:
    """Appends rows of zeros up to one of 8 sizes between two powers of two.

    oneDNN and its wrapper in PyTorch keep compiled code and buffers for every number of rows they meet, and every
    batch has another: without this, the two ranks of the quickstart grew by 1.3 GB each.
    """
    rows = len(x_ND)
    grain = 1 << max(rows.bit_length() - 4, 0)
    return functional.pad(x_ND, (0, 0, 0, -rows % grain))


def _product(x_RD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Returns x Wᵀ + b; the operator is the one that PyTorch's own compiler emits for a linear layer on CPUs."""
    return torch.ops.mkldnn._linear_pointwise(x_RD, weight_OD, bias_O, "none", [], "")
