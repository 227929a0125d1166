"""`torch.nn.Linear` by the faster product on CPUs.

N rows, D width of the input.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmsa_dist.runtime.onednn import linear


class Linear(nn.Linear):
    """A drop-in for `torch.nn.Linear`: the same parameters, and the same values but for rounding."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """Returns x Wᵀ + b, (N, out) for (N, in)."""
        return linear(x_ND, self.weight, self.bias)


class LinearReLU(nn.Linear):
    """`torch.nn.Linear` and the ReLU behind it; in float32 on a CPU in place, without memory of its own."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """Returns max(x Wᵀ + b, 0), (N, out) for (N, in)."""
        return linear(x_ND, self.weight, self.bias, relu=True)
