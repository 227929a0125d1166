"""Conformers: right geometry, fixed by molecule and seed, and what counts as given 3D."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from mmsa_shards import conformers
from mmsa_shards.conformers import _relaxed, embed, given_coordinates, has_stereo_of
from mmsa_shards.depiction import depict

KEY = "LFQSCWFLJHTTHZ-UHFFFAOYSA-N"


def placed(mol: Chem.Mol, xyz: np.ndarray) -> Chem.Mol:
    """The molecule with its atoms at (A, 3) coordinates."""
    mol = Chem.Mol(mol)
    mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()))
    mol.GetConformer().SetPositions(xyz.astype(float))
    mol.GetConformer().Set3D(True)
    return mol


def test_ethanol_has_the_bonds_of_ethanol():
    (xyz,) = embed(Chem.MolFromSmiles("CCO"), count=1, seed=0, inchikey=KEY)
    assert xyz.dtype == np.float32
    assert np.linalg.norm(xyz[0] - xyz[1]) == pytest.approx(1.51, abs=0.05)
    assert np.linalg.norm(xyz[1] - xyz[2]) == pytest.approx(1.42, abs=0.05)


def test_stereo_is_that_of_the_molecule():
    for smiles in ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "F/C=C/F", "F/C=C\\F"):
        mol = Chem.MolFromSmiles(smiles)
        (xyz,) = embed(mol, count=1, seed=0, inchikey=KEY)
        bare = placed(Chem.MolFromSmiles(smiles.replace("@", "").replace("/", "").replace("\\", "")), xyz)
        Chem.AssignStereochemistryFrom3D(bare)
        assert Chem.MolToSmiles(bare) == Chem.MolToSmiles(mol)


def test_seed_and_molecule_fix_the_conformers():
    mol = Chem.MolFromSmiles("CCCCO")
    first = embed(mol, count=2, seed=0, inchikey=KEY)
    assert first.shape == (2, 5, 3)
    np.testing.assert_array_equal(first, embed(mol, count=2, seed=0, inchikey=KEY))
    assert not np.array_equal(first, embed(mol, count=2, seed=1, inchikey=KEY))
    assert not np.array_equal(first, embed(mol, count=2, seed=0, inchikey=KEY[::-1]))


def test_an_impossible_molecule_has_no_conformer():
    # bicyclobutane whose bridgeheads point to opposite sides
    assert embed(Chem.MolFromSmiles("F[C@]12C[C@]1(F)C2"), count=1, seed=0, inchikey=KEY).shape == (0, 6, 3)


def test_a_cage_is_embedded_by_trying_its_isomers():
    # Its bridgeheads are not specified; neither distances nor random coordinates alone embed it.
    cage = Chem.MolFromSmiles("C1NC2C3CC1C2C3")
    xyz = embed(cage, count=2, seed=0, inchikey=KEY)
    assert 1 <= len(xyz) <= 2
    for bond in cage.GetBonds():
        lengths = np.linalg.norm(xyz[:, bond.GetBeginAtomIdx()] - xyz[:, bond.GetEndAtomIdx()], axis=1)
        assert ((lengths > 1.3) & (lengths < 1.7)).all()


STRAINED = {
    "meta_bridged_naphthalene": "C#CCOC1c2cc3ccccc3c(c2C(C)C)C1OCC#C",
    "oxygen_bridged_thiazolopyrimidine": "COC(=O)[C@H]1[C@H]2c3ccccc3O[C@@]1(C)N=c1s/c(=C/c3ccc(OC)cc3)c(=O)n12",
    "anhydrosugar": "COCCN[C@@H]1[C@@H]2OC[C@H](O2)[C@@H](NCc2ccc(-c3ccccc3)cc2)[C@@H]1O",
    "azabicyclooctane_aziridine": "Cc1nsc(N2C[C@@H]3CC[C@]4(C2)[C@H]3N4c2nc3c(OCC(F)(F)F)cc(Cl)cn3n2)n1",
}


@pytest.mark.parametrize("smiles", STRAINED.values(), ids=STRAINED)
def test_what_etkdg_has_no_way_to_is_relaxed_and_keeps_its_stereo(smiles, monkeypatch):
    relaxed = []

    def spy(*arguments):
        relaxed.append(_relaxed(*arguments))
        return relaxed[-1]

    monkeypatch.setattr(conformers, "_relaxed", spy)
    mol = Chem.MolFromSmiles(smiles)
    (xyz,) = embed(mol, count=1, seed=0, inchikey=KEY)
    assert len(relaxed) == 1, "a newer RDKit may embed it by itself: find another molecule"
    bare = placed(Chem.MolFromSmiles(smiles.replace("@", "").replace("/", "")), xyz)
    Chem.AssignStereochemistryFrom3D(bare)
    assert bare.HasSubstructMatch(mol, useChirality=True)
    ends = np.array([[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] for bond in mol.GetBonds()])
    lengths = np.linalg.norm(xyz[ends[:, 0]] - xyz[ends[:, 1]], axis=1)
    assert ((lengths > 1.15) & (lengths < 1.9)).all()


def test_several_relaxed_conformers_differ_and_are_fixed():
    mol = Chem.MolFromSmiles(STRAINED["meta_bridged_naphthalene"])
    xyz = embed(mol, count=2, seed=0, inchikey=KEY)
    assert xyz.shape == (2, mol.GetNumAtoms(), 3)
    assert not np.allclose(xyz[0], xyz[1])
    np.testing.assert_array_equal(xyz, embed(mol, count=2, seed=0, inchikey=KEY))


@pytest.mark.parametrize(
    ("smiles", "other", "unspecified"),
    [
        ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "CC(N)C(=O)O"),
        ("F/C=C/F", "F/C=C\\F", "FC=CF"),
        ("C[C@H]1C[C@H](F)C1", "C[C@H]1C[C@@H](F)C1", "CC1CC(F)C1"),
    ],
    ids=["centre", "double_bond", "ring"],
)
def test_a_conformer_of_another_isomer_is_known_as_such(smiles, other, unspecified):
    drawn, mirror, free = (Chem.AddHs(Chem.MolFromSmiles(text)) for text in (smiles, other, unspecified))
    embedded = Chem.Mol(drawn)
    assert rdDistGeom.EmbedMolecule(embedded, randomSeed=1) == 0
    assert has_stereo_of(drawn, embedded)
    assert has_stereo_of(free, embedded)
    assert not has_stereo_of(mirror, embedded)


def test_minimization_leads_to_a_lower_energy():
    mol = Chem.MolFromSmiles("CC(=O)Nc1ccccc1")
    embedded = embed(mol, count=1, seed=0, inchikey=KEY)
    minimized = embed(mol, count=1, seed=0, inchikey=KEY, mmff_iterations=500)
    assert embedded.shape == minimized.shape == (1, 10, 3)
    assert _energy(mol, minimized[0]) < _energy(mol, embedded[0]) - 1


def test_minimization_leaves_what_has_no_parameters():
    mol = Chem.MolFromSmiles("CB(O)O")  # MMFF94 has no boron
    np.testing.assert_array_equal(
        embed(mol, count=1, seed=0, inchikey=KEY, mmff_iterations=500), embed(mol, count=1, seed=0, inchikey=KEY)
    )


def _energy(mol: Chem.Mol, xyz: np.ndarray) -> float:
    """Returns the MMFF94 energy in kcal/mol with these heavy atoms, hydrogens where they suit best."""
    full = Chem.AddHs(placed(mol, xyz), addCoords=True)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(full)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(full, properties)
    for number in range(mol.GetNumAtoms()):
        field.MMFFAddPositionConstraint(number, 0.0, 1e5)
    field.Minimize(maxIts=1000)
    return rdForceFieldHelpers.MMFFGetMoleculeForceField(full, properties).CalcEnergy()


def test_what_counts_as_given(shared_data):
    with gzip.open(shared_data / "pubchem" / "pubchem3d_101.sdf.gz") as file:
        mols = [mol for mol in Chem.ForwardSDMolSupplier(file) if mol is not None]
    assert len(mols) > 90
    for mol in mols:
        xyz = given_coordinates(mol)
        assert xyz is not None
        assert xyz.shape == (mol.GetNumAtoms(), 3)


@pytest.mark.parametrize("spoil", [lambda xyz: xyz * np.nan, lambda xyz: xyz * 0])
def test_coordinates_that_mean_nothing_are_not_given(spoil):
    mol = Chem.MolFromSmiles("CCO")
    mol.AddConformer(Chem.Conformer(3))
    mol.GetConformer().Set3D(True)
    mol.GetConformer().SetPositions(spoil(np.array([[0.0, 0, 0], [1.5, 0, 0], [2, 1.4, 0]])))
    assert given_coordinates(mol) is None


@pytest.mark.parametrize("smiles", ["CC(=O)Nc1ccc(O)cc1", "CCCCO", "c1ccccc1", "O=C=O", "OB(O)C#N"])
@pytest.mark.parametrize(("factor", "is_3d"), [(1, True), (1 / 0.529177, False), (10, False), (0.1, False)])
def test_coordinates_in_other_units_are_not_given(smiles, factor, is_3d):
    mol = Chem.MolFromSmiles(smiles)
    (xyz,) = embed(mol, count=1, seed=0, inchikey=KEY)
    assert (given_coordinates(placed(mol, xyz * factor)) is not None) == is_3d


def test_bonds_of_metals_may_be_long_and_not_vanish():
    mol = Chem.MolFromSmiles("C[Na]")
    for length, is_3d in ((0.3, False), (2.6, True), (4.0, True)):
        found = given_coordinates(placed(mol, np.array([[0.0, 0, 0], [length, 0, 0]])))
        assert (found is not None) == is_3d


@pytest.mark.parametrize(
    ("smiles", "can_be_flat"),
    [
        ("CC(C)(C)CO", False),
        ("CC(F)Cl", False),
        ("C[C@H]1CCCCC1", False),
        ("CC(=O)Nc1ccc(O)cc1", True),
        ("CCO", True),
        ("[2H]C([2H])([2H])c1ccccc1", True),
    ],
)
def test_a_drawing_that_claims_to_be_3d_is_none_where_the_molecule_cannot_be_flat(smiles, can_be_flat):
    mol = Chem.MolFromSmiles(smiles)
    drawing = np.column_stack([depict(mol), np.full(mol.GetNumAtoms(), 0.5)])
    tilted = drawing @ np.array([[1, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]])
    for xyz in (drawing, drawing[:, [0, 2, 1]], tilted, tilted.round(4)):
        assert (given_coordinates(placed(mol, xyz)) is not None) == can_be_flat


def test_real_structures_are_given(shared_data):
    for name, count in (("egfr_10mol_10conf", 100), ("spice_des_monomers_5conf", 1890)):
        with gzip.open(shared_data / "conformers" / f"{name}.sdf.gz") as file:
            mols = [mol for mol in Chem.ForwardSDMolSupplier(file) if mol is not None]
        assert len(mols) == count
        assert all(given_coordinates(mol) is not None for mol in mols)


def test_a_drawing_is_flat():
    xy = depict(Chem.MolFromSmiles("c1ccccc1C"))
    assert xy.shape == (7, 2)
    assert np.linalg.norm(xy[0] - xy[1]) == pytest.approx(1.5, abs=0.01)
