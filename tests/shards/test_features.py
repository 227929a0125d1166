"""Features against a fixture written by hand, and against OGB's own files where they are there."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from mmsa_shards.features import atom_features, bond_features
from mmsa_shards.schema import ATOM_CATEGORIES, BOND_CATEGORIES, AtomColumn

FIXTURE = json.loads((Path(__file__).parent / "features_by_hand.json").read_text())


@pytest.mark.parametrize("molecule", FIXTURE["molecules"], ids=lambda molecule: molecule["smiles"])
def test_equals_what_was_worked_out_by_hand(molecule):
    mol = Chem.MolFromSmiles(molecule["smiles"])
    bonds, ends = bond_features(mol)
    np.testing.assert_array_equal(atom_features(mol), np.reshape(molecule["atoms"], (-1, 9)))
    np.testing.assert_array_equal(bonds, np.reshape(molecule["bonds"], (-1, 4)))
    np.testing.assert_array_equal(ends, np.reshape(molecule["bond_ends"], (-1, 2)))


def test_every_category_is_within_its_size():
    smiles = [
        "[Fe+6]",
        "*",
        "[CH3]",
        "F[S](F)(F)(F)(F)F",
        "C[C@H](N)O",
        "[2H]C",
        "CC->[Pt]",
        "C/C=C/C",
        "[B-8]",
    ]
    for mol in map(Chem.MolFromSmiles, smiles):
        for columns, categories in (
            (atom_features(mol), ATOM_CATEGORIES),
            (bond_features(mol)[0], BOND_CATEGORIES),
        ):
            assert (columns < [category.size for category in categories]).all()


def test_what_no_vocabulary_knows_takes_the_last_category():
    assert atom_features(Chem.MolFromSmiles("*"))[0, 0] == 118
    assert atom_features(Chem.MolFromSmiles("[U+6]"))[0, 3] == 11
    assert bond_features(Chem.MolFromSmiles("N->[Pt]"))[0][0, 0] == 4


def test_charges_radicals_and_chirality_stand_where_their_atoms_are():
    atoms = atom_features(Chem.MolFromSmiles("[NH3+][C@@H]([CH2])C(=O)[O-]"))
    assert atoms[:, AtomColumn.FORMAL_CHARGE].tolist() == [6, 5, 5, 5, 5, 4]  # 5 is no charge
    assert atoms[:, AtomColumn.RADICAL_ELECTRONS].tolist() == [0, 0, 1, 0, 0, 0]
    assert (atoms[:, AtomColumn.CHIRALITY] > 0).tolist() == [False, True, False, False, False, False]
    many = atom_features(Chem.MolFromSmiles(".".join(["[O-]C", "[NH3+]C"] * 700)))  # RDKit stops at 1,000 by itself
    assert many[:, 3].tolist() == [4, 5, 6, 5] * 700


def test_directions_say_the_stereo_of_a_double_bond_or_nothing():
    assert bond_features(Chem.MolFromSmiles("C/C=C/C"))[0][:, 3].tolist() == [1, 0, 1]
    assert bond_features(Chem.MolFromSmiles("C/C"))[0][:, 3].tolist() == [0]


def test_a_lone_atom_has_no_bonds():
    bonds, ends = bond_features(Chem.MolFromSmiles("[Na+]"))
    assert bonds.shape == (0, 4)
    assert ends.shape == (0, 2)


def _table(path: Path) -> np.ndarray:
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, delimiter=",", dtype=np.int64, ndmin=2)


@pytest.mark.parametrize("name", ["ogbg_molesol", "ogbg_molbbbp"])
def test_equals_ogb(name, shared_data):
    folder = shared_data / "oracles" / "ogb" / name
    with gzip.open(folder / "mapping" / "mol.csv.gz", "rt") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)]
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    atoms = np.concatenate([atom_features(mol) for mol in mols])
    both = [bond_features(mol) for mol in mols]
    np.testing.assert_array_equal(
        [mol.GetNumAtoms() for mol in mols], _table(folder / "raw/num-node-list.csv.gz")[:, 0]
    )
    np.testing.assert_array_equal(atoms, _table(folder / "raw/node-feat.csv.gz"))
    # OGB gives every bond once here, in the order of RDKit.
    bonds = np.concatenate([bonds[:, :3] for bonds, _ in both])
    ends = np.concatenate([ends for _, ends in both])
    theirs, their_ends = _table(folder / "raw/edge-feat.csv.gz"), _table(folder / "raw/edge.csv.gz")
    np.testing.assert_array_equal(bonds, theirs)
    np.testing.assert_array_equal(ends, their_ends)


def test_type_and_direction_are_hus(shared_data):
    words = json.loads((shared_data / "oracles" / "hu_et_al_vocab.json").read_text())
    mol = Chem.MolFromSmiles("C/C=C/c1ccccc1C#N")
    columns, _ = bond_features(mol)
    for bond, row in zip(mol.GetBonds(), columns, strict=True):
        assert words["possible_bonds"][row[0]] == bond.GetBondType().name
        assert words["possible_bond_dirs"][row[3]] == bond.GetBondDir().name
    for atom, row in zip(mol.GetAtoms(), atom_features(mol), strict=True):
        assert words["possible_atomic_num_list"][row[0]] == atom.GetAtomicNum()
        assert words["possible_chirality_list"][row[1]] == atom.GetChiralTag().name
