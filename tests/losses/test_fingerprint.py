from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit.Chem import MolFromSmiles
from rdkit.Chem.rdFingerprintGenerator import AdditionalOutput, GetMorganGenerator

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.collate import block_to_batch
from mmsa_dist.losses.fingerprint import FingerprintLoss, circular_fingerprint
from mmsa_shards.from_smiles import smiles_to_block
from mmsa_shards.options import SmilesOptions
from tests.fixtures.batches import SINGLE, C, Molecule, O, batch_of, permuted, random_molecule
from tests.fixtures.embedders import DRUGS

MANY = 1 << 22  # bits, so that hardly two substructures share one
HARD = [
    "C",
    "[Na+].[Cl-]",
    "C1CC1.CC",
    "[13CH4]",
    "C/C=C/C",
    "OC[C@H](N)C(=O)O",
    "c1ccc2[nH]ccc2c1",
    "[NH3+]CC([O-])=O",
]


def batch_of_smiles(smiles: list[str]) -> MoleculeBatch:
    read = smiles_to_block(smiles, SmilesOptions(standardization=None))
    assert not read.refused
    return block_to_batch(read.block, picture_size=None)


def morgan_environments(smiles: str, atoms_A9: torch.Tensor) -> set[int]:
    """RDKit's identifiers of all substructures of radius 0 to 2, from the same invariants of atoms."""
    molecule = MolFromSmiles(smiles)
    element, _, degree, charge, hydrogens, _, _, _, ring = atoms_A9.T.tolist()
    invariants = [hash(of_atom) % (1 << 32) for of_atom in zip(element, degree, charge, hydrogens, ring, strict=True)]
    every = AdditionalOutput()
    every.AllocateAtomToBits()
    generator = GetMorganGenerator(radius=2, includeRedundantEnvironments=True, countSimulation=False)
    generator.GetSparseCountFingerprint(molecule, customAtomInvariants=invariants, additionalOutput=every)
    return {bit for bits in every.GetAtomToBits() for bit in bits}


@pytest.mark.parametrize("smiles", [*DRUGS, *HARD])
def test_as_many_substructures_as_rdkit_finds(smiles: str) -> None:
    batch = batch_of_smiles([smiles])
    assert circular_fingerprint(batch, MANY).sum() == len(morgan_environments(smiles, batch.atoms_A9))


def test_the_same_substructures_in_other_molecules_share_bits() -> None:
    propane, butane, ether = circular_fingerprint(batch_of_smiles(["CCC", "CCCC", "COC"]), MANY)
    # CH3, CH2, and CH3 with its neighbour; what is two bonds away differs.
    assert (propane & butane).sum() == 3
    assert (propane & ether).sum() == 1  # CH3


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10**6), st.randoms())
def test_the_order_of_atoms_and_the_company_mean_nothing(size: int, seed: int, chance) -> None:
    molecule = random_molecule(size, seed)
    order = list(range(size))
    chance.shuffle(order)
    alone = circular_fingerprint(batch_of(molecule), 512)
    among = circular_fingerprint(batch_of(Molecule([C]), permuted(molecule, order), Molecule([O, O])), 512)
    assert torch.equal(alone[0], among[1])


def test_bonds_count_by_their_type_and_not_by_number_alone() -> None:
    kinds = torch.stack([circular_fingerprint(batch_of(Molecule([C, C], [(0, 1, kind)])), MANY)[0] for kind in (0, 1)])
    assert (kinds[0] ^ kinds[1]).any()
    cut = circular_fingerprint(batch_of(Molecule([C, C])), MANY)[0]
    assert (cut ^ kinds[0]).any()


def test_bits_are_spread_evenly() -> None:
    elements = [Molecule([number]) for number in range(118)]
    bits = circular_fingerprint(batch_of(*elements), 64).any(dim=0)
    assert bits.sum() > 55  # of 64; 3 x 118 draws miss one with


def test_value_by_hand() -> None:
    loss = FingerprintLoss(1, 4)
    with torch.no_grad():
        loss.head.weight.zero_()
        loss.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    fingerprint = torch.tensor([[True, True, False, False], [False, False, False, True]])
    log_sum = math.log(3 + math.e)
    expected = [(log_sum - 1 + log_sum) / 2 - math.log(2), log_sum]
    assert loss(torch.ones(2, 1), fingerprint).tolist() == pytest.approx(expected, rel=1e-6)


def test_an_atom_without_bonds_has_no_surroundings() -> None:
    fingerprint = circular_fingerprint(batch_of(Molecule([C]), Molecule([C, C], [(0, 1, SINGLE)])), MANY)
    assert fingerprint.sum(dim=1).tolist() == [1, 3]


def test_vectors_that_tell_molecules_apart_can_tell_all_their_substructures() -> None:
    torch.manual_seed(0)
    fingerprint = circular_fingerprint(batch_of_smiles(DRUGS), 2048)
    loss = FingerprintLoss(len(DRUGS), 2048)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.3)
    values = []
    for _ in range(60):
        values.append(loss(torch.eye(len(DRUGS)), fingerprint).mean())
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert values[0] > 3
    assert 0 <= values[-1] < 0.02
