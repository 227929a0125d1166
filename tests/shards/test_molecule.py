"""Molecules made in a guard: the time limit costs the conformers, not the molecule."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmsa_shards.block import Molecule
from mmsa_shards.molecule import Order, coordinates_fit, make_molecule, make_molecules
from mmsa_shards.options import Columns, Conformers
from mmsa_shards.standardize import Refusal


def columns(mode: str = "etkdg", *, count: int = 1, timeout_s: float = 2.0, mmff_iterations: int = 0) -> Columns:
    return Columns(
        conformers=Conformers(mode=mode, count=count, seed=0, timeout_s=timeout_s, mmff_iterations=mmff_iterations)
    )


ETKDG = columns()
ETHANOL = Order(id="a", inchikey="LFQSCWFLJHTTHZ-UHFFFAOYSA-N", smiles="CCO")
# A peptide of 60 residues: more than RDKit can embed in the time that the test allows.
PEPTIDE = Order(id="p", inchikey="P", smiles="N[C@@H](CC(C)C)C(=O)" * 60 + "O")


def test_past_the_time_limit_a_molecule_goes_without_conformers():
    first, peptide, last = make_molecules([ETHANOL, PEPTIDE, ETHANOL], columns(timeout_s=0.2))
    assert isinstance(peptide, Molecule)
    assert peptide.conformers.shape == (0, 60 * 8 + 1, 3)
    assert peptide.conformer_source == "none"
    assert len(peptide.xy) == len(peptide.atoms) == 60 * 8 + 1
    for ethanol in (first, last):
        assert isinstance(ethanol, Molecule)
        assert ethanol.conformer_source == "etkdg"


def test_coordinates_fit_what_is_the_same_but_for_stereo_that_is_left_open():
    fitting = {
        ("CC(N)C(=O)O", "C[C@H](N)C(=O)O"): True,
        ("C[C@H](N)C(=O)O", "CC(N)C(=O)O"): False,  # which of the two it is, is known of the first alone
        ("C[C@@H](N)C(=O)O", "C[C@H](N)C(=O)O"): False,
        ("O=c1cc[nH]cc1", "Oc1ccncc1"): False,  # one skeleton, drawn as two tautomers
        ("CCO", "OCCC"): False,
        ("no molecule", "CCO"): False,
        ("CCO", "no molecule"): False,
    }
    assert coordinates_fit([*fitting]) == [*fitting.values()]
    assert coordinates_fit([]) == []


def test_the_guard_changes_nothing():
    (guarded,) = make_molecules([ETHANOL], ETKDG)
    here = make_molecule(ETHANOL, ETKDG)
    assert isinstance(guarded, Molecule)
    assert isinstance(here, Molecule)
    np.testing.assert_array_equal(guarded.conformers, here.conformers)
    np.testing.assert_array_equal(guarded.atoms, here.atoms)


def test_given_coordinates_are_kept_unless_3d_is_not_wanted():
    xyz = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    order = Order(id="a", inchikey="A", smiles="CCO", given=xyz, given_source="pubchem3d")
    for mode, count, kept, source in [
        ("etkdg", 1, 1, "pubchem3d"), ("given", 3, 2, "pubchem3d"), ("none", 3, 0, "none"),
    ]:  # fmt: skip
        molecule = make_molecule(order, columns(mode, count=count))
        assert isinstance(molecule, Molecule)
        np.testing.assert_array_equal(molecule.conformers, xyz[:kept])
        assert molecule.conformer_source == source


def test_conformers_that_a_block_cannot_keep_are_left_out():
    good = np.arange(9, dtype=np.float32).reshape(3, 3)
    order = Order(id="a", inchikey="A", smiles="CCO", given=np.stack([40 * good, good]))
    given = columns("given", count=2)
    one = make_molecule(order, given)
    assert isinstance(one, Molecule)
    np.testing.assert_array_equal(one.conformers, [good])
    none = make_molecule(dataclasses.replace(order, given=40 * good[None]), given)
    assert isinstance(none, Molecule)
    assert (none.conformers.shape, none.conformer_source) == ((0, 3, 3), "none")


def test_what_does_not_parse_is_refused():
    (refusal,) = make_molecules([Order(id="a", inchikey="A", smiles="C(")], ETKDG)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "standardization"


def test_what_the_options_say_about_columns(options):
    chosen = dataclasses.replace(
        options, conformers="etkdg", conformers_per_molecule=3, seed=5, conformer_timeout_s=7.0,
        conformer_backend="nvmolkit", mmff_iterations=20, descriptors=True,
    )  # fmt: skip
    conformers = Conformers(mode="etkdg", count=3, seed=5, timeout_s=7.0, backend="nvmolkit", mmff_iterations=20)
    assert Columns.from_options(chosen) == Columns(conformers=conformers, depiction=True, descriptors=True)


def test_minimization_reaches_the_molecule():
    (plain,) = make_molecules([ETHANOL], ETKDG)
    (minimized,) = make_molecules([ETHANOL], columns(mmff_iterations=100))
    assert isinstance(plain, Molecule)
    assert isinstance(minimized, Molecule)
    assert minimized.conformer_source == "etkdg"
    assert not np.array_equal(plain.conformers, minimized.conformers)


@pytest.mark.parametrize(
    ("smiles", "given_smiles", "fits"),
    [
        ("CC(N)F", "N[C@@H](C)F", True),  # PubChem3D knows the centre that the 2D record leaves open
        ("C[C@@H](N)F", "N[C@@H](C)F", False),  # the mirror image
        ("C[C@H](N)F", "N[C@@H](C)F", True),
        ("CC(O)F", "N[C@@H](C)F", False),
    ],
)
def test_given_coordinates_follow_the_atoms_of_the_molecule(smiles, given_smiles, fits):
    places = {"N": (0.0, 0.0, 0.0), "C@": (1.5, 0.0, 0.0), "C": (2.0, 1.4, 0.0), "F": (2.0, -0.6, 1.0)}
    given = np.asarray([[places[name] for name in ("N", "C@", "C", "F")]], np.float32)
    order = Order(id="", inchikey="", smiles=smiles, given=given, given_smiles=given_smiles, given_source="pubchem3d")
    molecule = make_molecule(order, columns("given"))
    if fits:
        assert molecule.conformers[0].tolist() == [list(np.float32(places[name])) for name in ("C", "C@", "N", "F")]
        assert molecule.conformer_source == "pubchem3d"
    else:
        assert (len(molecule.conformers), molecule.conformer_source) == (0, "none")
