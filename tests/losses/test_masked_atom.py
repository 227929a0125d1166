from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.encoders.gin import GIN, MASK_TOKEN
from mmsa_dist.losses.masked_atom import MaskedAtomLoss, draw_masked_atoms
from tests.fixtures.batches import C, Molecule, N, O, batch_of, random_molecule


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_molecule_gives_its_share():
    batch = batch_of(*(random_molecule(size, seed=size) for size in (1, 6, 7, 40)))
    masked = draw_masked_atoms(batch, 0.15, seeded(0))
    per_molecule = torch.zeros(4, dtype=torch.int64).index_add(0, batch.molecule_of_atom_A, masked.long())
    assert per_molecule.tolist() == [1, 1, 2, 7]  # floor(0.15 n) + 1


def test_draw_hangs_on_the_generator_alone():
    batch = batch_of(random_molecule(40, seed=0))
    first = draw_masked_atoms(batch, 0.15, seeded(3))
    assert torch.equal(first, draw_masked_atoms(batch, 0.15, seeded(3)))
    assert not torch.equal(first, draw_masked_atoms(batch, 0.15, seeded(4)))


def test_draw_hangs_on_the_molecule_and_not_on_its_place():
    molecules = [random_molecule(size, seed=size) for size in (9, 30, 14)]
    there, back = batch_of(*molecules), batch_of(*molecules[::-1])
    there.index_B[:], back.index_B[:] = torch.tensor([5, 6, 1 << 40]), torch.tensor([1 << 40, 6, 5])
    first = draw_masked_atoms(there, 0.3, seeded(3)).split([9, 30, 14])
    again = draw_masked_atoms(back, 0.3, seeded(3)).split([14, 30, 9])
    assert all(torch.equal(a, b) for a, b in zip(first, again[::-1], strict=True))
    there.index_B[1] = 7
    other = draw_masked_atoms(there, 0.3, seeded(3)).split([9, 30, 14])
    assert torch.equal(other[0], first[0])
    assert not torch.equal(other[1], first[1])


def test_every_atom_is_drawn_sometimes():
    batch = batch_of(random_molecule(3, seed=0), random_molecule(5, seed=1))
    generator = seeded(0)
    counts = sum(draw_masked_atoms(batch, 0.0, generator).long() for _ in range(300))
    assert counts.sum() == 600
    assert (counts[:3] - 100).abs().max() < 40
    assert (counts[3:] - 60).abs().max() < 40


def test_encoder_sees_masks_and_the_batch_stays_as_it_was():
    batch = batch_of(Molecule([C, N, O]), Molecule([O]))
    batch.atoms_A9[:, 1] = 1
    before = batch.atoms_A9.clone()
    seen = []

    def encode_atoms(_, atoms_A9):
        seen.append(atoms_A9)
        return torch.zeros(4, 8)

    MaskedAtomLoss(8, mask_rate=0.0)(batch, encode_atoms, seeded(0))
    masked = draw_masked_atoms(batch, 0.0, seeded(0))
    assert torch.equal(batch.atoms_A9, before)
    assert (seen[0][masked, :2] == torch.tensor([MASK_TOKEN, 0])).all()
    assert torch.equal(seen[0][~masked], before[~masked])


def test_value_by_hand():
    batch = batch_of(Molecule([C]), Molecule([O]))  # both are masked
    loss = MaskedAtomLoss(2)
    with torch.no_grad():
        loss.head.weight.zero_()
        loss.head.bias.zero_()
        loss.head.bias[C] = 1.0
    value = loss(batch, lambda *_: torch.ones(2, 2), seeded(0))
    log_sum = math.log(118 + math.e)
    assert value.item() == pytest.approx(((log_sum - 1) + log_sum) / 2, rel=1e-6)


def test_gradient_reaches_encoder_and_head():
    gin, loss = GIN(layers=2, width=16), MaskedAtomLoss(16)
    loss(batch_of(random_molecule(12, seed=0)), gin.encode_atoms, seeded(0)).backward()
    assert loss.head.weight.grad.abs().sum() > 0
    assert gin.x_embedding1.weight.grad[MASK_TOKEN].abs().sum() > 0


def test_a_batch_without_molecules_costs_nothing():
    nobody = MaskedAtomLoss(8)(batch_of(), lambda batch, atoms_A9: torch.zeros(len(atoms_A9), 8), seeded(0))
    assert nobody.item() == 0
