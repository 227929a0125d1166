"""Standardization: what a chemist expects of the parent, and that the short way never differs from the long one."""

from __future__ import annotations

import dataclasses
import gzip

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom

from mmsa_shards.options import Standardization
from mmsa_shards.read import Structure
from mmsa_shards.standardize import (
    Keys,
    Parent,
    Refusal,
    _identify,
    _may_change,
    _parse,
    _standardize,
    parent_of,
    standardize_many,
)
from tests.fixtures.standardization import DEFAULT


def standardize_text(structure: Structure, how: Standardization, *, keys: Keys = "needed") -> Parent | Refusal:
    """The steps that a guard takes, in this process."""
    return _identify(_standardize(_parse(structure), how=how), keys=keys)


def _standardized(smiles: str, how: Standardization = DEFAULT) -> Parent:
    parent = standardize_text(Structure("SMILES", smiles), how)
    assert isinstance(parent, Parent)
    return parent


def _with(**changes) -> Standardization:
    return dataclasses.replace(DEFAULT, **changes)


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
    ("given", "parent", "changes"),
    [
        ("OCC", "CCO", ""),
        ("CN(=O)=O", "C[N+](=O)[O-]", ""),  # RDKit's parser charges it, before the standardization
        ("CC(=O)O[Na]", "CC(=O)O", "metal_disconnected fragment_removed neutralized"),
        ("CS(C)=O", "C[S+](C)[O-]", "normalized"),
        ("C[S+2]([O-])([O-])C", "CS(C)(=O)=O", "normalized"),
        # The proton goes to the phenolate, which is the weaker acid.
        ("[O-]c1ccc(cc1)C(=O)O.[Na+]", "O=C(O)c1ccc(O)cc1", "reionized fragment_removed neutralized"),
        ("C1CCCCC1.CCO", "C1CCCCC1", "fragment_removed"),
        ("[NH3+]CC(=O)[O-]", "NCC(=O)O", "neutralized"),
        ("C[N+](C)(C)CC(=O)[O-]", "C[N+](C)(C)CC(=O)[O-]", ""),
        # The charges of a nitro group are no salt, but those beside them may be.
        ("[O-][N+](=O)c1ccccc1", "O=[N+]([O-])c1ccccc1", ""),
        ("[O-][N+](=O)c1ccc(cc1)C(=O)[O-].[K+]", "O=C(O)c1ccc([N+](=O)[O-])cc1", "fragment_removed neutralized"),
        ("[O-][N+](=O)CCS(C)=O", "C[S+]([O-])CC[N+](=O)[O-]", "normalized"),
        ("[K+].[O-][N+](=O)[O-]", "O=[N+]([O-])O", "fragment_removed neutralized"),
        ("F[P-](F)(F)(F)(F)F", "F[P-](F)(F)(F)(F)F", ""),  # with a proton it would be no molecule
        # Nor has the ring of a metallocene: with a proton it would not be aromatic.
        ("[cH-]1cccc1.[cH-]1cccc1.[Fe+2]", "c1cc[cH-]c1", "fragment_removed"),
        ("[S-][c-]1cccc1", "[S-][c-]1cccc1", ""),
        ("[O-]c1c[n+](C)no1", "C[n+]1cc([O-])on1", ""),  # sydnones cannot be drawn without charges
        ("[O-]c1c[n+](CCS(C)=O)no1", "CS(=O)CC[n+]1cc([O-])on1", ""),  # and the sulfoxide beside stays as drawn
        ("C[n+]1cc([N-]C(C)=O)on1", "CC(=O)[N-]c1c[n+](C)no1", ""),
        ("CCn1cc([O-])[o+]n1.Cl", "CCn1cc([O-])[o+]n1", "fragment_removed"),
    ],
)
def test_what_was_done_is_told(given, parent, changes):
    standardized = _standardized(given)
    assert (standardized.smiles, " ".join(standardized.changes)) == (parent, changes)


@pytest.mark.parametrize(
    ("options", "given", "parent", "changes"),
    [
        ({"groups": "keep"}, "CS(C)=O", "CS(C)=O", ""),
        ({"groups": "keep"}, "CC(=O)O[Na]", "CC(=O)[O][Na]", ""),
        ({"groups": "keep"}, "C[NH3+].[Cl-]", "CN", "fragment_removed neutralized"),
        ({"salts": "keep"}, "CCO.O", "CCO.O", ""),
        ({"salts": "keep"}, "CC(=O)[O-].[Na+]", "CC(=O)[O-].[Na+]", ""),  # sodium cannot lose its charge
        ({"salts": "keep"}, "C[NH3+].[Cl-]", "CN.Cl", "neutralized"),
        ({"charges": "keep"}, "CC(=O)[O-].[Na+]", "CC(=O)[O-]", "fragment_removed"),
        ({"charges": "keep"}, "[NH3+]CC(=O)[O-]", "[NH3+]CC(=O)[O-]", ""),
        ({"salts": "keep", "charges": "keep"}, "CC(=O)O[Na]", "CC(=O)[O-].[Na+]", "metal_disconnected"),
        ({"isotopes": "remove"}, "[2H]C([2H])([2H])O", "CO", "isotope_removed"),
        ({"isotopes": "remove"}, "C[C@H]([2H])O", "CCO", "isotope_removed"),  # chiral by the isotope alone
        ({"isotopes": "remove"}, "C[C@@]([2H])(F)Cl", "C[C@@H](F)Cl", "isotope_removed"),  # and this one is without
        ({"isotopes": "remove"}, "[13CH4]", "C", "isotope_removed"),
        ({"isotopes": "remove"}, "CCO", "CCO", ""),
        ({"tautomers": "canonical"}, "Oc1ccccn1", "O=c1cccc[nH]1", "tautomer"),
        ({"tautomers": "canonical"}, "CC(O)=CC(C)=O", "CC(=O)CC(C)=O", "tautomer"),
        ({"tautomers": "canonical"}, "CC(=O)[C@H](C)F", "CC(=O)[C@H](C)F", ""),  # stereo that tautomers could lose
        ({"tautomers": "canonical"}, "C/C=C/C(C)=O", "C/C=C/C(C)=O", ""),
        ({"tautomers": "canonical"}, "Oc1ccccn1.Cl", "O=c1cccc[nH]1", "fragment_removed tautomer"),
    ],
)
def test_options(options, given, parent, changes):
    standardized = _standardized(given, _with(**options))
    assert (standardized.smiles, " ".join(standardized.changes)) == (parent, changes)
    again = _standardized(standardized.smiles, _with(**options))
    assert (again.smiles, again.inchikey, again.changes) == (standardized.smiles, standardized.inchikey, ())


@pytest.mark.parametrize(
    "smiles", ["CC(=O)[O-].[Na+]", "CC(=O)[O][Na]", "C[NH3+]", "CS(C)=O", "[2H]C", "Oc1ccccn1", "C[S+2]([O-])([O-])C"]
)
def test_a_molecule_as_drawn_is_its_own_parent(smiles):
    parent = _standardized(smiles, _with(isotopes="remove", tautomers="canonical").as_drawn())
    assert (parent.smiles, parent.changes) == (Chem.CanonSmiles(smiles), ())


def test_the_options_of_a_preparation(options):
    how = Standardization.from_options(dataclasses.replace(options, max_atoms=7, isotopes="remove"))
    assert how == _with(max_atoms=7, isotopes="remove")


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
    refusal = standardize_text(Structure("SMILES", smiles), DEFAULT)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert len(refusal.message) > 10


def test_a_large_salt_of_small_parts_is_no_large_molecule():
    parent = standardize_text(Structure("SMILES", ".".join(["CCO"] * 5)), _with(max_atoms=3))
    assert isinstance(parent, Parent)
    refusal = standardize_text(Structure("SMILES", "CCO.O"), _with(max_atoms=3, salts="keep"))
    assert isinstance(refusal, Refusal)
    assert refusal.message == "has 4 heavy atoms, more than prepare.max_atoms=3"


def test_coordinates_follow_the_atoms_of_the_smiles():
    mol = Chem.AddHs(Chem.MolFromSmiles("OC(F)Cl"))
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    for atom in mol.GetAtoms():
        conformer.SetAtomPosition(atom.GetIdx(), [0.1 * atom.GetAtomicNum(), atom.GetIdx(), 0.1 * (atom.GetIdx() % 2)])
    mol.AddConformer(conformer)
    parent = standardize_text(Structure("molfile", Chem.MolToMolBlock(mol)), DEFAULT)
    assert isinstance(parent, Parent)
    numbers = [atom.GetAtomicNum() for atom in Chem.MolFromSmiles(parent.smiles).GetAtoms()]
    np.testing.assert_allclose(parent.xyz[:, 0], [0.1 * number for number in numbers], atol=1e-3)


def test_inchikeys_are_made_as_asked(monkeypatch):
    ethanol = Structure("SMILES", "OCC")
    keys = {keys: standardize_text(ethanol, DEFAULT, keys=keys).inchikey for keys in ("needed", "wanted", "none")}
    assert keys == dict.fromkeys(("needed", "wanted"), "LFQSCWFLJHTTHZ-UHFFFAOYSA-N") | {"none": ""}
    assert standardize_many([ethanol], DEFAULT, keys="none") == [standardize_text(ethanol, DEFAULT, keys="none")]
    monkeypatch.setattr(Chem, "MolToInchiKey", lambda mol: "")  # as of a molecule of which InChI has none
    assert standardize_text(ethanol, DEFAULT).reason == "inchi"
    assert standardize_text(ethanol, DEFAULT, keys="wanted") == Parent("CCO", "")


def test_coordinates_do_not_change_the_inchikey():
    """A cyclohexanone's hydrazone: InChI sees which side its N-N lies on, which RDKit does not hold for stereo."""
    smiles = "CC(=O)NN=C1CCC(c2ccccc2)CC1"
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    molfile = Chem.MolToMolBlock(mol)
    flat = standardize_text(Structure("SMILES", smiles), DEFAULT)
    solid = standardize_text(Structure("molfile", molfile), DEFAULT)
    assert solid.smiles == flat.smiles
    assert solid.inchikey == flat.inchikey
    assert Chem.MolToInchiKey(Chem.MolFromMolBlock(molfile)) != flat.inchikey  # so there is something to be seen


def test_coordinates_follow_the_atoms_through_every_step():
    """Sodium acetate with deuterium: metal, salt, charge and isotope go, and the tautomer is looked for."""
    atoms = "[Na]O", "C(=O)C([2H])([2H])[2H]"
    mol = Chem.MolFromSmiles("".join(atoms))
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    for atom in mol.GetAtoms():
        conformer.SetAtomPosition(atom.GetIdx(), [0.1 * atom.GetAtomicNum(), atom.GetIdx(), 1.0])
    mol.AddConformer(conformer)
    parent = standardize_text(
        Structure("molfile", Chem.MolToMolBlock(mol)), _with(isotopes="remove", tautomers="canonical")
    )
    assert isinstance(parent, Parent)
    assert parent.smiles == "CC(=O)O"
    # Na O C O C and three D as given; C C O O in the parent, where the acid's oxygen is the one that held Na.
    np.testing.assert_allclose(parent.xyz, [[0.6, 4, 1], [0.6, 2, 1], [0.8, 3, 1], [0.8, 1, 1]], atol=1e-3)


def test_messages_say_what_is_wrong_and_where():
    def message(text: str, form: str = "SMILES") -> str:
        refusal = standardize_text(Structure(form, text), DEFAULT)
        assert isinstance(refusal, Refusal)
        return refusal.message

    assert message("CC(") == "cannot be read as a SMILES: syntax error around character 3"
    assert message("CC1") == "cannot be read as a SMILES: unclosed ring"
    assert message("CC\0O") == "cannot be read as a SMILES: syntax error around character 3"
    too_much = "has a valence of {}, more than it can have"
    assert message("C(C)(C)(C)(C)C") == "atom 1 of the SMILES, C without a charge, " + too_much.format(5)
    assert message("C[P-](F)(F)(F)(F)(F)F") == "atom 2 of the SMILES, P of charge -1, " + too_much.format(7)
    bonds = "cannot be given single and double bonds: one of them may lack its hydrogen, as in [nH], or a charge"
    assert message("Cc1ccnc1") == f"its aromatic atoms 2, 3, 4, 5, 6 of the SMILES {bonds}"
    assert "aromatic atoms 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ... of" in message("c1" + "c" * 13 + "c1")
    assert message("cC") == "atom 1 of the SMILES is aromatic, but stands in no ring"
    counts = "cannot be read as a molfile: Counts line too short: '  x' on line4"
    assert message("a\nb\n\n  x\n", "molfile") == counts
    ala = Chem.MolToMolBlock(Chem.MolFromSmiles("CC")).replace(" C  ", " Ala", 1)
    assert message(ala, "molfile") == "cannot be read as a molfile: Element 'Ala' not found"


def test_a_drawing_is_not_3d():
    mol = Chem.MolFromSmiles("CCO")
    rdDepictor.Compute2DCoords(mol)
    parent = standardize_text(Structure("molfile", Chem.MolToMolBlock(mol)), DEFAULT)
    assert isinstance(parent, Parent)
    assert parent.xyz is None


def _short_way_is_the_long_way(lines: list[str]) -> None:
    taken = 0
    for line in lines:
        mol = Chem.MolFromSmiles(line.split()[0])
        if mol is None or _may_change(mol, DEFAULT):
            continue
        taken += 1
        parent, changes = parent_of(mol, DEFAULT)
        assert (_standardized(line.split()[0]).smiles, changes) == (Chem.MolToSmiles(parent), ()), line
    assert taken > len(lines) / 2


def test_the_short_way_is_the_long_way(shared_data):
    with gzip.open(shared_data / "pretrain" / "pubchem_cid_random_25k.smi.gz", "rt") as file:
        _short_way_is_the_long_way(file.readlines()[:1000])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pubchem_cid_random_25k", "chembl_deepchem", "zinc_natural_products_50k"])
def test_the_short_way_is_the_long_way_on_whole_files(name, shared_data):
    with gzip.open(shared_data / "pretrain" / f"{name}.smi.gz", "rt") as file:
        _short_way_is_the_long_way(file.readlines())


def _again(lines: list[str]) -> list[str]:
    """Returns the lines whose parent is standardized to another one."""
    changed = []
    for line in lines:
        parent = standardize_text(Structure("SMILES", line.split()[0]), DEFAULT)
        if isinstance(parent, Parent):
            again = _standardized(parent.smiles)
            if (again.smiles, again.inchikey) != (parent.smiles, parent.inchikey):
                changed.append(line)
    return changed


def test_a_parent_is_its_own_parent(shared_data):
    with gzip.open(shared_data / "pretrain" / "pubchem_cid_random_25k.smi.gz", "rt") as file:
        assert _again(file.readlines()[1000:2500]) == []


def test_many_in_a_guard_are_one_by_one():
    structures = [Structure("SMILES", text) for text in ["CCO", "xx", "C[NH3+].[Cl-]"]]
    assert standardize_many(structures, DEFAULT) == [standardize_text(s, DEFAULT) for s in structures]
