"""Standardization: what a chemist expects of the parent, and that the short way never differs from the long one."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from mmsa_shards.read import Structure
from mmsa_shards.standardize import (
    _MAY_CHANGE,
    Parent,
    Refusal,
    parent_of,
    standardize_many,
    standardize_text,
)


def _standardized(smiles: str) -> Parent:
    parent = standardize_text(Structure("SMILES", smiles), max_atoms=500)
    assert isinstance(parent, Parent)
    return parent


@pytest.mark.parametrize(
    ("given", "parent"),
    [
        ("OCC", "CCO"),
        ("CC(=O)[O-].[Na+]", "CC(=O)O"),  # salt
        ("C[NH3+].[Cl-]", "CN"),
        ("CN(=O)=O", "C[N+](=O)[O-]"),  # one form of the nitro group
        ("CS(C)=O", "C[S+](C)[O-]"),  # and of the sulfoxide
        ("C[N+](C)(C)CC(=O)[O-]", "C[N+](C)(C)CC(=O)[O-]"),  # charges that cannot go stay
        ("C[C@H](N)C(=O)O", "C[C@H](N)C(=O)O"),  # stereo is kept
        ("F/C=C/F", "F/C=C/F"),
        ("[2H]C([2H])([2H])O", "[2H]C([2H])([2H])O"),  # isotopes are kept
        ("[13CH4]", "[13CH4]"),
        ("CC(=O)O[Na]", "CC(=O)O"),  # metals come off
    ],
)
def test_parents(given, parent):
    assert _standardized(given).smiles == parent


def test_inchikey():
    assert _standardized("CC(=O)Oc1ccccc1C(=O)O").inchikey == "BSYNRYMUTXBXSQ-UHFFFAOYSA-N"


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("CC(", "syntax"),
        ("glucose", "syntax"),
        ("C(C)(C)(C)(C)C", "valence"),
        ("c1cccc1", "aromaticity"),
        ("C*", "undefined_atom"),
        ("C" * 501, "too_many_atoms"),
    ],
)
def test_refusals_have_a_reason_and_a_sentence(smiles, reason):
    refusal = standardize_text(Structure("SMILES", smiles), max_atoms=500)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert len(refusal.message) > 10


def test_a_large_salt_of_small_parts_is_no_large_molecule():
    parent = standardize_text(Structure("SMILES", ".".join(["CCO"] * 5)), max_atoms=3)
    assert isinstance(parent, Parent)


def test_coordinates_follow_the_atoms_of_the_smiles():
    mol = Chem.AddHs(Chem.MolFromSmiles("OC(F)Cl"))
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    for atom in mol.GetAtoms():
        conformer.SetAtomPosition(atom.GetIdx(), [2.0 * atom.GetAtomicNum(), 0.5 * atom.GetIdx(), 1.0])
    mol.AddConformer(conformer)
    parent = standardize_text(Structure("molfile", Chem.MolToMolBlock(mol)), max_atoms=500)
    assert isinstance(parent, Parent)
    numbers = [atom.GetAtomicNum() for atom in Chem.MolFromSmiles(parent.smiles).GetAtoms()]
    np.testing.assert_allclose(parent.xyz[:, 0], [2.0 * number for number in numbers], atol=1e-3)


def test_a_drawing_is_not_3d():
    mol = Chem.MolFromSmiles("CCO")
    rdDepictor.Compute2DCoords(mol)
    parent = standardize_text(Structure("molfile", Chem.MolToMolBlock(mol)), max_atoms=500)
    assert isinstance(parent, Parent)
    assert parent.xyz is None


def _short_way_is_the_long_way(lines: list[str]) -> None:
    taken = 0
    for line in lines:
        mol = Chem.MolFromSmiles(line.split()[0])
        if mol is None or "." in Chem.MolToSmiles(mol) or mol.HasSubstructMatch(_MAY_CHANGE):
            continue
        taken += 1
        assert _standardized(line.split()[0]).smiles == Chem.MolToSmiles(parent_of(mol)), line
    assert taken > len(lines) / 2


def test_the_short_way_is_the_long_way(shared_data):
    with gzip.open(shared_data / "pretrain" / "pubchem_cid_random_25k.smi.gz", "rt") as file:
        _short_way_is_the_long_way(file.readlines()[:1000])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pubchem_cid_random_25k", "chembl_deepchem", "zinc_natural_products_50k"])
def test_the_short_way_is_the_long_way_on_whole_files(name, shared_data):
    with gzip.open(shared_data / "pretrain" / f"{name}.smi.gz", "rt") as file:
        _short_way_is_the_long_way(file.readlines())


def test_many_in_a_guard_are_one_by_one():
    structures = [Structure("SMILES", text) for text in ["CCO", "xx", "C[NH3+].[Cl-]"]]
    assert standardize_many(structures, max_atoms=5) == [standardize_text(s, max_atoms=5) for s in structures]
