"""Reconstruction of projected features from codes, a modality's own and another's.

The form follows HGM2R (Feng et al., TPAMI 2023). B molecules of this rank, P width of projected features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmsa_dist.losses.averaging import mean_of_present


def reconstruct_loss(
    projected: Mapping[str, Tensor],
    self_reconstruction: Mapping[str, Tensor],
    cross_reconstruction: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    cross_present: Mapping[str, Tensor],
) -> Tensor:
    """Returns mean_m MSE(sg(x_m), r_m) + MSE(sg(x_m), r'_m) over the modalities; sg stops the gradient.

    Targets are detached, so that shrinking them does not lower the loss. Each MSE is a mean over the molecules
    of all ranks that have the modalities it needs, zero if none has: averaged over ranks, value and gradient
    are those of a single process that holds all molecules.

    Args:
        projected: (B, P) x_m by modality; the same modalities on every rank.
        self_reconstruction: (B, P) r_m.
        cross_reconstruction: (B, P) r'_m.
        present: (B,) bool: molecules that have m.
        cross_present: (B,) bool: molecules that have both m and the modality it is reconstructed from.

    Returns:
        () in float32, or float64 if the inputs are.
    """
    errors, masks = [], []
    for name, target_BP in projected.items():
        for reconstruction_BP, mask_B in (
            (self_reconstruction[name], present[name]),
            (cross_reconstruction[name], cross_present[name]),
        ):
            error_BP = (reconstruction_BP - target_BP.detach()).to(torch.promote_types(target_BP.dtype, torch.float32))
            errors.append(error_BP.square().mean(dim=1))
            masks.append(mask_B)
    return mean_of_present(torch.stack(errors), torch.stack(masks)).sum() / len(projected)
