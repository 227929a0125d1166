"""Prediction of a molecule's circular substructures, those of Morgan fingerprints.

The targets are free and depend on the 2D graph alone. The idea is that of GROVER's motifs (Rong et al. 2020, arXiv
2007.02835); the substructures are those of extended-connectivity fingerprints (Rogers and Hahn 2010). B molecules,
A atoms, F bits, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.hashing import STEP, mix_tensor, signed
from mmsa_shards.schema import AtomColumn, BondColumn

_RADIUS = 2  # bonds from the central atom, as in ECFP4
_ATOM_INVARIANTS = (
    AtomColumn.ATOMIC_NUMBER,
    AtomColumn.DEGREE,
    AtomColumn.FORMAL_CHARGE,
    AtomColumn.HYDROGENS,
    AtomColumn.IN_RING,
)


class FingerprintLoss(nn.Module):
    """Loss of a linear prediction of the substructures from a molecule's vector."""

    def __init__(self, width: int, bits: int) -> None:
        """Builds the head.

        Args:
            width: D of the molecules' vectors.
            bits: F, to which substructures are folded.
        """
        super().__init__()
        self.head = nn.Linear(width, bits)

    def forward(self, x_BD: Tensor, fingerprint_BF: Tensor) -> Tensor:
        """Returns KL(t ‖ softmax(head(x))) of each molecule, where t_f is 1/n for each of n set bits.

        Args:
            x_BD: (B, D) vectors.
            fingerprint_BF: (B, F) bool: `circular_fingerprint` of the same molecules.

        Returns:
            (B,) float32.
        """
        target_BF = fingerprint_BF / fingerprint_BF.sum(dim=1, keepdim=True)
        return functional.kl_div(self.head(x_BD).float().log_softmax(dim=1), target_BF, reduction="none").sum(dim=1)


def circular_fingerprint(batch: MoleculeBatch, bits: int) -> Tensor:
    """Returns (B, bits) bool: the substructures of up to two bonds around an atom in each molecule, folded by a hash.

    Atoms differ by element, degree, charge, hydrogens and ring membership, bonds by type; stereochemistry is ignored.
    """
    # Each bond twice, once from either end.
    here, there = batch.bond_ends_E2.T.reshape(-1), batch.bond_ends_E2.flip(1).T.reshape(-1)
    type_2E = batch.bonds_E4[:, BondColumn.TYPE].long().repeat(2)
    state_A = torch.zeros(len(batch.atoms_A9), dtype=torch.int64, device=batch.device)
    for column in _ATOM_INVARIANTS:
        state_A = _mix(state_A + batch.atoms_A9[:, column])
    molecule_A = batch.molecule_of_atom_A
    fingerprint_BF = torch.zeros(len(batch), bits, dtype=torch.bool, device=batch.device)
    fingerprint_BF[molecule_A, state_A % bits] = True
    for radius in range(1, _RADIUS + 1):
        # A sum of hashes does not depend on the order of the bonds.
        hash_2E = _mix(_mix(state_A)[there] + type_2E)
        state_A = _mix(state_A + radius + torch.zeros_like(state_A).index_add_(0, here, hash_2E))
        fingerprint_BF[molecule_A[here], state_A[here] % bits] = True  # an atom without bonds has no environment
    return fingerprint_BF


def _mix(state: Tensor) -> Tensor:
    return mix_tensor(state + signed(STEP))
