"""Prediction of a molecule's descriptors: logP, polar surface, charges, counts of rings and the like.

The targets are computed, not measured, and depend on the 2D graph alone, as in KPGT (Li et al. 2023) and
CheMeleon (Burns et al. 2025). B molecules, N molecules to measure the scale on, F descriptors,
D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

FARTHEST = 5.0
"""Standard deviations from the mean at which targets are clipped: some descriptors have extreme outliers."""


class DescriptorScale(NamedTuple):
    """Mean and standard deviation of each descriptor over molecules, (F,) float32; deviations are above 0."""

    mean_F: Tensor
    deviation_F: Tensor


class DescriptorLoss(nn.Module):
    """Loss of a linear prediction of the descriptors from a molecule's vector."""

    def __init__(self, width: int, scale: DescriptorScale) -> None:
        """Builds the head.

        Args:
            width: D of the molecules' vectors.
            scale: of the training molecules; saved with the weights.
        """
        super().__init__()
        self.head = nn.Linear(width, len(scale.mean_F))
        self.mean_F: Tensor
        self.deviation_F: Tensor
        self.register_buffer("mean_F", scale.mean_F)
        self.register_buffer("deviation_F", scale.deviation_F)

    def forward(self, x_BD: Tensor, descriptors_BF: Tensor) -> Tensor:
        """Returns the squared error of head(x) against standardized descriptors, clipped at `FARTHEST`, over F.

        Args:
            x_BD: (B, D) vectors.
            descriptors_BF: (B, F), NaN where there is no value, which counts as zero error.

        Returns:
            (B,) float32: the mean over the descriptors of each molecule.
        """
        target_BF = ((descriptors_BF - self.mean_F) / self.deviation_F).clamp(-FARTHEST, FARTHEST)
        error_BF = self.head(x_BD).float() - target_BF
        return error_BF.where(target_BF.isfinite(), 0.0).square().mean(dim=1)


def descriptor_scale(descriptors_NF: Tensor) -> DescriptorScale:
    """Measures the scale on N molecules, (N, F) float32, NaN where there is no value.

    A constant descriptor gets a deviation of 1, one without values also a mean of 0.
    """
    known_NF = descriptors_NF.isfinite()
    number_F = known_NF.sum(dim=0).clamp(min=1)
    wide_NF = descriptors_NF.double().where(known_NF, 0.0)
    mean_F = wide_NF.sum(dim=0) / number_F
    deviation_F = ((wide_NF - mean_F).where(known_NF, 0.0).square().sum(dim=0) / number_F).sqrt()
    still_F = deviation_F <= 1e-6 * mean_F.abs()
    return DescriptorScale(mean_F.float(), deviation_F.masked_fill(still_F, 1.0).float())
