"""The common space of the modalities: projection, code, reconstruction, unified embedding.

The form follows HGM2R (Feng et al., TPAMI 2023). B molecules, M modalities, w width of an encoder, P width
of projected features, C width of codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsa_dist.runtime.linear import Linear


class FusionOutput(NamedTuple):
    """Output of `Fusion`; mappings are keyed by modality.

    Rows of molecules that lack the modality are finite but meaningless; the masks say which rows count.
    """

    codes: dict[str, Tensor]
    """(B, C) c_m."""
    unified_BC: Tensor
    """(B, C) u: mean of the codes that a molecule has."""
    projected: dict[str, Tensor]
    """(B, P) x_m: targets of the reconstructions."""
    self_reconstruction: dict[str, Tensor]
    """(B, P) r_m, from the modality's own code."""
    cross_reconstruction: dict[str, Tensor]
    """(B, P) r'_m, from the code of modality π(m)."""
    present: dict[str, Tensor]
    """(B,) bool: the molecule has m."""
    cross_present: dict[str, Tensor]
    """(B,) bool: the molecule has both m and π(m)."""

    @property
    def has_any_B(self) -> Tensor:
        """(B,) bool: the molecules that have a modality; the others have no embedding."""
        return has_any(self.present)


class Fusion(nn.Module):
    """Maps each modality m into a common space and back.

    x_m = tanh(W_h f_m), code c_m = tanh(W_e x_m), self reconstruction r_m = tanh(W_d c_m), cross
    reconstruction r'_m = tanh(W_d c_π(m)), unified embedding u = mean of the codes present. W_h, W_e and W_d
    belong to m, so that the code of π(m) has to hold what m's decoder needs for r'_m; all have a bias.
    """

    def __init__(self, widths: Mapping[str, int], projection: int, code: int) -> None:
        """Builds the maps.

        Args:
            widths: of the features, by modality; permutations refer to its order.
            projection: P.
            code: C.
        """
        super().__init__()
        self.code = code
        self.modalities = tuple(widths)
        self.project = nn.ModuleDict({name: Linear(width, projection) for name, width in widths.items()})
        self.encode = nn.ModuleDict({name: Linear(projection, code) for name in widths})
        self.decode = nn.ModuleDict({name: Linear(code, projection) for name in widths})

    def draw_permutation(self, generator: torch.Generator) -> tuple[int, ...]:
        """Draws π uniformly from all permutations of the modalities, fixed points included.

        The only randomness in this module: with a generator seeded by (seed, step), a resumed run draws what the
        original would have drawn, and all ranks draw the same.
        """
        return tuple(torch.randperm(len(self.modalities), generator=generator).tolist())

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        permutation: Sequence[int] | None = None,
    ) -> FusionOutput:
        """Fuses the features of a batch.

        Args:
            features: (B, w_m) by modality, finite even where a molecule lacks it.
            present: (B,) bool by modality; a molecule lacking all of them gets u = 0.
            permutation: π: modality number i is reconstructed from the code of number permutation[i]. None shifts
                them cyclically by one, for validation.

        Raises:
            ValueError: `permutation` is not a permutation of the modalities' numbers.
        """
        count = len(self.modalities)
        if permutation is None:
            permutation = [(number + 1) % count for number in range(count)]
        if sorted(permutation) != list(range(count)):
            raise ValueError(f"permutation={tuple(permutation)} must contain each of 0..{count - 1} once")
        partner = {name: self.modalities[permutation[number]] for number, name in enumerate(self.modalities)}

        projected = {name: self.project[name](features[name]).tanh() for name in self.modalities}
        codes = self._codes(projected)
        return FusionOutput(
            codes=codes,
            unified_BC=mean_of_present(codes, present),
            projected=projected,
            self_reconstruction={name: self.decode[name](codes[name]).tanh() for name in codes},
            cross_reconstruction={name: self.decode[name](codes[partner[name]]).tanh() for name in codes},
            present={name: present[name] for name in codes},
            cross_present={name: present[name] & present[partner[name]] for name in codes},
        )

    def codes_of(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns (B, C) c_m of the modalities in `features` and computes nothing else, for inference."""
        return self._codes({name: self.project[name](feature).tanh() for name, feature in features.items()})

    def _codes(self, projected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.encode[name](x_BP).tanh() for name, x_BP in projected.items()}


def has_any(present: Mapping[str, Tensor]) -> Tensor:
    """Returns (B,) bool: the molecules that have a modality, from those that have each one."""
    return torch.stack(list(present.values())).any(dim=0)


def mean_of_present(codes: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """Returns (B, C) u: the mean of the codes that each molecule has; 0 if it has none."""
    present_MB = torch.stack([present[name] for name in codes])
    total_BC = torch.stack(list(codes.values())).where(present_MB[..., None], 0.0).sum(dim=0)
    return total_BC / present_MB.sum(dim=0).clamp(min=1)[:, None]
