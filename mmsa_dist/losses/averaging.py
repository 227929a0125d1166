"""The mean of a loss over the molecules of all ranks that it concerns. B molecules of this rank."""

from __future__ import annotations

from torch import Tensor

from mmsa_dist.runtime.distributed import all_reduce_mean, world_size


def mean_of_present(loss_B: Tensor, present_B: Tensor) -> Tensor:
    """Returns the mean over the present molecules of all ranks, however they are distributed (collective).

    Averaged over ranks, value and gradient are those of a single process that holds all molecules.

    Args:
        loss_B: (B,) of each molecule, finite.
        present_B: (B,) bool: the molecules that count.

    Returns:
        () scalar, to be averaged over ranks; zero if no rank has a present molecule.
    """
    mean_count = all_reduce_mean(present_B.sum().to(loss_B.dtype)).clamp(min=1 / world_size())
    return loss_B.where(present_B, 0.0).sum() / mean_count
