"""The mean of a loss over the molecules of all ranks that it concerns, or over their atoms.

T losses of B molecules (or atoms) of this rank.
"""

from __future__ import annotations

from torch import Tensor

from mmsa_dist.runtime.distributed import all_reduce_mean, world_size


def mean_of_present(loss_TB: Tensor, present_TB: Tensor) -> Tensor:
    """Returns the mean over the present molecules of all ranks, however they are distributed (collective).

    Averaged over ranks, value and gradient are those of a single process that holds all molecules.

    Args:
        loss_TB: (T, B) or (B,) of each molecule, finite.
        present_TB: bool, in the shape of `loss_TB`: the molecules that count.

    Returns:
        (T,) or (), to be averaged over ranks; zero if no rank has a present molecule.
    """
    mean_count_T = all_reduce_mean(present_TB.sum(dim=-1).to(loss_TB.dtype)).clamp(min=1 / world_size())
    return loss_TB.where(present_TB, 0.0).sum(dim=-1) / mean_count_T
