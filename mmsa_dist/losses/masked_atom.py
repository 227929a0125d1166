"""Masked-atom modelling (AttrMask, Hu et al. 2020, arXiv 1905.12265): prediction of the elements of masked atoms.

B molecules, A atoms, M of them masked, D width of the atom encoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.hashing import mix_tensor, share_tensor
from mmsa_dist.encoders.gin import MASK_TOKEN
from mmsa_dist.losses.averaging import mean_of_present
from mmsa_shards.schema import AtomColumn


class MaskedAtomLoss(nn.Module):
    """Cross entropy of the atomic numbers of masked atoms, predicted linearly from the encoder's atom vectors."""

    def __init__(self, width: int, mask_rate: float = 0.15) -> None:
        """Builds the head.

        Args:
            width: D of the atom vectors.
            mask_rate: share of a molecule's atoms that is masked; at least one atom is.
        """
        super().__init__()
        self.mask_rate = mask_rate
        self.head = nn.Linear(width, MASK_TOKEN)

    def forward(
        self,
        batch: MoleculeBatch,
        encode_atoms: Callable[[MoleculeBatch, Tensor], Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        """Masks atoms, encodes them and returns the mean cross entropy over the masked atoms of all ranks.

        Args:
            batch: the molecules, unmasked.
            encode_atoms: `AtomEncoder.encode_atoms`: maps the batch and (A, 9) features to (A, D) vectors.
            generator: draws the atoms; on any device, in the same state on every rank.

        Returns:
            () float32, to be averaged over ranks.
        """
        masked_A = draw_masked_atoms(batch, self.mask_rate, generator)
        atoms_A9 = batch.atoms_A9.clone()
        atoms_A9[:, AtomColumn.ATOMIC_NUMBER].masked_fill_(masked_A, MASK_TOKEN)
        atoms_A9[:, AtomColumn.CHIRALITY].masked_fill_(masked_A, 0)
        logits = self.head(encode_atoms(batch, atoms_A9)[masked_A])
        true = batch.atoms_A9[masked_A, AtomColumn.ATOMIC_NUMBER].long()
        loss_M = functional.cross_entropy(logits.float(), true, reduction="none")
        return mean_of_present(loss_M, torch.ones_like(true, dtype=torch.bool))


def draw_masked_atoms(batch: MoleculeBatch, rate: float, generator: torch.Generator) -> Tensor:
    """Draws ⌊n·rate⌋ + 1 of the n atoms of every molecule, as upstream does; returns (A,) bool.

    The atoms drawn depend on the molecule's number and one draw of the generator, not on batch or rank.
    """
    molecule_A = batch.molecule_of_atom_A
    place_A = torch.arange(len(molecule_A), device=batch.device) - batch.atom_ptr[molecule_A]
    seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    chance_A = share_tensor(mix_tensor(mix_tensor(batch.index_B + seed)[molecule_A] + place_A))
    order_A = (molecule_A + chance_A).argsort()  # shuffles the atoms of each molecule
    quota_A = (batch.atom_ptr.diff() * rate).long()[molecule_A] + 1
    return torch.zeros_like(batch.has_xyz_B[molecule_A]).scatter(0, order_A, place_A < quota_A)
