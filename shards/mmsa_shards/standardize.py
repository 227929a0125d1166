"""One record -> its standardized parent, or the reason why it has none.

The procedure is that of RDKit's MolStandardize (clean-up, largest fragment, charges neutralized; Landrum &
Swain), with stereo and isotopes kept and tautomers as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem.MolStandardize import rdMolStandardize

from mmsa_shards.conformers import given_coordinates
from mmsa_shards.guard import Lost, guard_of_this_process
from mmsa_shards.read import Structure

Reason = Literal[
    "empty",
    "syntax",
    "valence",
    "aromaticity",
    "undefined_atom",
    "too_many_atoms",
    "standardization",
    "inchi",
    "depiction",
    "timeout",
    "crash",
]

#: Seconds of computing that a record may cost; the usual is a ten-thousandth of it.
SECONDS_PER_RECORD = 10.0

# Cleaning up, neutralizing and choosing a fragment leave a single neutral fragment as it is unless it has a
# metal (disconnected), a sulfoxide (charge-separated) or one of the hypervalent forms below: every other
# transformation of MolStandardize's catalogue needs a charged atom, or a valence that RDKit does not
# sanitize.
_MAY_CHANGE = Chem.MolFromSmarts(
    "[!+0,!#1!#5!#6!#7!#8!#9!#14!#15!#16!#17!#34!#35!#53,"
    "$([#16,#34;D3]),$([#16,#34;D2;v3]),$([#15;X3](=*)=*),$([#17,#35,#53;D0,D2,D3,D4])]"
)

# Made once: to build them again for every molecule, as rdMolStandardize.CleanupInPlace does, takes longer
# than to apply them. With RemoveHs and the stereo, the first three are that function.
_METALS = rdMolStandardize.MetalDisconnector()
_FUNCTIONAL_GROUPS = rdMolStandardize.Normalizer()
_ACIDS = rdMolStandardize.Reionizer()
_FRAGMENTS = rdMolStandardize.LargestFragmentChooser()
_CHARGES = rdMolStandardize.Uncharger()


@dataclass(frozen=True)
class Parent:
    """The standardized parent of a record."""

    smiles: str
    """Canonical, isomeric."""
    inchikey: str
    xyz: NDArray[np.float32] | None = None
    """(A, 3), Å: coordinates that the input gave, atoms in the order of `smiles`; None where it gave none."""


@dataclass(frozen=True)
class Refusal:
    """Why a record is no molecule that can be used."""

    reason: Reason
    message: str


def standardize_many(structures: Sequence[Structure], *, max_atoms: int) -> list[Parent | Refusal]:
    """Standardizes one structure after the other in a guard, so that none can hang or crash the caller."""
    results = guard_of_this_process().map(
        partial(standardize_text, max_atoms=max_atoms), structures, seconds=SECONDS_PER_RECORD
    )
    return [Refusal(r.reason, f"RDKit {r.message}") if isinstance(r, Lost) else r for r in results]


def standardize_text(structure: Structure, *, max_atoms: int) -> Parent | Refusal:
    """Standardizes a SMILES or a molfile in this process.

    Args:
        structure: to parse; 3D coordinates of a molfile are kept.
        max_atoms: molecules with more heavy atoms are refused.
    """
    if not structure.text.strip():
        return Refusal("empty", f"the {structure.form} is empty")
    parse = Chem.MolFromSmiles if structure.form == "SMILES" else Chem.MolFromMolBlock
    try:
        mol = parse(structure.text)
        if mol is None:
            return _diagnose(parse(structure.text, sanitize=False), structure.form)
        return standardize(mol, max_atoms=max_atoms)
    except (RuntimeError, ValueError) as error:  # all of RDKit's exceptions derive from these two
        return Refusal("standardization", f"RDKit cannot standardize it: {first_line(error)}")


def standardize(mol: Chem.Mol, *, max_atoms: int) -> Parent | Refusal:
    """Standardizes a sanitized molecule; molecules of more than `max_atoms` heavy atoms are refused."""
    if mol.GetNumAtoms() == 0:
        return Refusal("empty", "the structure has no atoms")
    heavy = mol.GetNumHeavyAtoms()
    if heavy > max_atoms:  # before anything whose cost grows with size
        heavy = max(fragment.GetNumHeavyAtoms() for fragment in Chem.GetMolFrags(mol, asMols=True))
        if heavy > max_atoms:
            return Refusal("too_many_atoms", f"has {heavy} heavy atoms, more than prepare.max_atoms={max_atoms}")
    smiles = Chem.MolToSmiles(mol)
    if "*" in smiles:
        return Refusal("undefined_atom", "has an attachment point, R-group or query in place of an atom (*)")
    if "." in smiles or mol.HasSubstructMatch(_MAY_CHANGE):
        mol = parent_of(mol)
        smiles = Chem.MolToSmiles(mol)
    elif "/" in smiles or "\\" in smiles:
        # RDKit sees a few ring double bonds otherwise the second time; parent_of looks again, so must we.
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
        smiles = Chem.MolToSmiles(mol)
    inchikey = Chem.MolToInchiKey(mol)
    if not inchikey:
        return Refusal("inchi", f"InChI has no identifier for {smiles}")
    xyz = given_coordinates(mol)
    if xyz is not None:
        xyz = xyz[list(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])]
    return Parent(smiles, inchikey, xyz)


def parent_of(mol: Chem.Mol) -> Chem.Mol:
    """Returns the cleaned-up, neutralized largest fragment of a sanitized molecule."""
    parent = Chem.RemoveHs(mol)
    _METALS.DisconnectInPlace(parent)
    _FUNCTIONAL_GROUPS.normalizeInPlace(parent)
    _ACIDS.reionizeInPlace(parent)
    Chem.AssignStereochemistry(parent, cleanIt=True, force=True)
    _FRAGMENTS.chooseInPlace(parent)
    _CHARGES.unchargeInPlace(parent)
    return parent


def _diagnose(unsanitized: Chem.Mol | None, what: str) -> Refusal:
    """Says why a molecule did not parse, given what it parses to without chemistry."""
    if unsanitized is None:
        return Refusal("syntax", f"cannot be read as a {what}")
    for problem in Chem.DetectChemistryProblems(unsanitized):
        reason: Reason = "aromaticity" if "Kekulize" in problem.GetType() else "valence"
        return Refusal(reason, first_line(problem.Message()))
    return Refusal("syntax", f"reads as a {what}, but its stereo or hydrogens make no sense")


def first_line(text: object) -> str:
    """Returns the first line of what RDKit says, which is the sentence; stack and conditions follow it."""
    return next(iter(str(text).strip().splitlines()), "no reason given")
