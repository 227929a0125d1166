"""One record -> its standardized parent, or the reason why it has none.

The procedure is that of RDKit's MolStandardize (Landrum & Swain): clean-up (metals disconnected, functional groups in
one form, charges on the strongest acids), largest fragment, charges neutralized. Stereo is kept. `Standardization` can
leave out steps, or add the removal of isotopes and the canonical tautomer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem.MolStandardize import rdMolStandardize

from mmsa_shards.conformers import given_coordinates
from mmsa_shards.guard import Lost, free_guard
from mmsa_shards.options import Keys, Standardization
from mmsa_shards.read import Structure

#: Increased when the same record gets another parent or InChIKey, or comes to be refused or accepted.
RECIPE = 2

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

#: What a step of the standardization did to a molecule; a step that changed nothing is not listed.
Change = Literal[
    "isotope_removed",
    "metal_disconnected",
    "normalized",
    "reionized",
    "fragment_removed",
    "neutralized",
    "tautomer",
]
#: CPU seconds that a step may take; most steps take less than a ten-thousandth of that.
SECONDS_PER_STEP = 10.0

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

# Clean-up, neutralization and the choice of a fragment leave a single neutral fragment unchanged unless it has a metal
# (which is disconnected), a sulfoxide (which is charge-separated) or one of the hypervalent forms below. Every other
# transformation in MolStandardize's catalogue needs a charged atom, or a valence that RDKit does not sanitize. The
# charges of a nitro group are already those of the catalogue.
_MAY_CHANGE = Chem.MolFromSmarts(
    "[!+0!$([NX3+](=[OX1+0])([OX1-])[#6])!$([OX1-][NX3+](=[OX1+0])[#6]),!#1!#5!#6!#7!#8!#9!#14!#15!#16!#17!#34!#35!#53,"
    "$([#16,#34;D3]),$([#16,#34;D2;v3]),$([#15;X3](=*)=*),$([#17,#35,#53;D0,D2,D3,D4])]"
)

_UNDEFINED = Chem.MolFromSmarts("[#0]")
_ISOTOPE = Chem.MolFromSmarts("[!0*]")
_CHARGED = Chem.MolFromSmarts("[!+0]")

# Built once: to build them for every molecule, as rdMolStandardize.CleanupInPlace does, takes longer than to apply
# them. The first three, with RemoveHs and the assignment of stereo, do what that function does.
_METALS = rdMolStandardize.MetalDisconnector()
_FUNCTIONAL_GROUPS = rdMolStandardize.Normalizer()
_ACIDS = rdMolStandardize.Reionizer()
_FRAGMENTS = rdMolStandardize.LargestFragmentChooser()
_CHARGES = rdMolStandardize.Uncharger()
_TAUTOMERS = rdMolStandardize.TautomerEnumerator()
_TAUTOMERS.SetRemoveSp3Stereo(False)
_TAUTOMERS.SetRemoveBondStereo(False)


@dataclass(frozen=True)
class Parent:
    """The standardized parent of a record."""

    smiles: str
    """Canonical and isomeric."""
    inchikey: str
    """Empty if none was to be made, or if InChI has none and it was not needed."""
    xyz: NDArray[np.float32] | None = None
    """(A, 3), Å: coordinates from the input, with atoms in the order of `smiles`; None if there were none."""
    changes: tuple[Change, ...] = ()
    """What was done to the structure, in this order."""


@dataclass(frozen=True)
class Refusal:
    """Why a record gives no usable molecule."""

    reason: Reason
    message: str


def standardize_many(
    structures: Sequence[Structure], how: Standardization, *, keys: Keys = "needed"
) -> list[Parent | Refusal]:
    """Standardizes structures in a guard, so that none of them can hang or crash the caller."""
    return standardize_and(structures, how, keys, then=())


def standardize_and(
    structures: Sequence[Structure], how: Standardization, keys: Keys, then: Sequence[Callable[[Any], Any]]
) -> list[Any]:
    """Standardizes structures and takes further steps in one guard, each on the result of the step before it.

    Returns:
        In order, the result of the last step, or the refusal of a structure that crashed or hung RDKit.
    """
    steps: list[Callable[[Any], Any]] = [partial(_standardize, how=how), partial(_identify, keys=keys), *then]
    with free_guard() as guard:
        results = list(guard.map(_parse, structures, then=steps, seconds=SECONDS_PER_STEP))
    return [refused_if_lost(result) for result in results]


def refused_if_lost(result: T | Lost) -> T | Refusal:
    """Returns the refusal of an item that ended RDKit's process; any other result is returned as it is."""
    return Refusal(result.reason, f"RDKit {result.message}") if isinstance(result, Lost) else result


class _Nameless(NamedTuple):
    """A parent that has no InChIKey yet."""

    mol: Chem.Mol
    smiles: str
    xyz: NDArray[np.float32] | None
    changes: tuple[Change, ...]


def _step(take: Callable[Concatenate[T, P], R | Refusal]) -> Callable[Concatenate[T | Refusal, P], R | Refusal]:
    """Makes a step that refuses what RDKit fails on, and passes on what an earlier step refused."""

    @wraps(take)
    def taken(given: T | Refusal, *args: P.args, **options: P.kwargs) -> R | Refusal:
        if isinstance(given, Refusal):
            return given
        try:
            return take(given, *args, **options)
        except (RuntimeError, ValueError) as error:  # all of RDKit's exceptions derive from these two
            return Refusal("standardization", f"RDKit cannot standardize it: {first_line(error)}")

    return taken


@_step
def _parse(structure: Structure) -> Chem.Mol | Refusal:
    if not structure.text.strip():
        return Refusal("empty", f"the {structure.form} is empty")
    parse = Chem.MolFromSmiles if structure.form == "SMILES" else Chem.MolFromMolBlock
    mol = parse(structure.text)
    return _diagnose(structure, parse) if mol is None else mol


@_step
def _standardize(mol: Chem.Mol, how: Standardization) -> _Nameless | Refusal:
    if mol.GetNumAtoms() == 0:
        return Refusal("empty", "the structure has no atoms")
    heavy = mol.GetNumHeavyAtoms()
    if heavy > how.max_atoms:  # before any step whose cost grows with size
        if how.salts == "strip":
            heavy = max(fragment.GetNumHeavyAtoms() for fragment in Chem.GetMolFrags(mol, asMols=True))
        if heavy > how.max_atoms:
            return Refusal("too_many_atoms", f"has {heavy} heavy atoms, more than prepare.max_atoms={how.max_atoms}")
    changes: tuple[Change, ...] = ()
    if _may_change(mol, how):
        if mol.HasSubstructMatch(_UNDEFINED):
            return Refusal("undefined_atom", "has an attachment point, R-group or query in place of an atom (*)")
        mol, changes = parent_of(mol, how)
        smiles = Chem.MolToSmiles(mol)
    else:
        smiles = Chem.MolToSmiles(mol)
        if "/" in smiles or "\\" in smiles:
            # RDKit assigns the stereo of a few ring double bonds differently the second time. `parent_of` assigns it
            # again, so this must too.
            Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
            smiles = Chem.MolToSmiles(mol)
    xyz = given_coordinates(mol)
    if xyz is not None:
        order = mol.GetProp("_smilesAtomOutputOrder")  # "[2,0,1,]"
        xyz = xyz[[int(atom) for atom in order.strip("[,]").split(",")]]
    return _Nameless(mol, smiles, xyz, changes)


@_step
def _identify(parent: _Nameless, keys: Keys) -> Parent | Refusal:
    # InChI would take stereo from the coordinates that the SMILES does not specify: of 4,374 records of SDF files, two
    # had another key than their SMILES.
    parent.mol.RemoveAllConformers()
    inchikey = "" if keys == "none" else Chem.MolToInchiKey(parent.mol)
    if keys == "needed" and not inchikey:
        return Refusal("inchi", f"InChI has no identifier for {parent.smiles}")
    return Parent(parent.smiles, inchikey, parent.xyz, parent.changes)


def _may_change(mol: Chem.Mol, how: Standardization) -> bool:
    """Whether `parent_of` might return a molecule other than `mol`."""
    return (
        mol.HasSubstructMatch(_MAY_CHANGE)
        or len(Chem.GetMolFrags(mol)) > 1
        or how.tautomers == "canonical"
        or (how.isotopes == "remove" and mol.HasSubstructMatch(_ISOTOPE))
    )


def parent_of(mol: Chem.Mol, how: Standardization) -> tuple[Chem.Mol, tuple[Change, ...]]:
    """Returns the parent of a sanitized molecule, and what was done to obtain it."""
    changes: list[Change] = []

    def apply(change: Change, step: Callable[[Chem.Mol], None], trait: Callable[[Chem.Mol], object]) -> None:
        before = trait(parent)
        step(parent)
        if trait(parent) != before:
            changes.append(change)

    if how.isotopes == "remove" and mol.HasSubstructMatch(_ISOTOPE):
        mol = Chem.Mol(mol)
        for atom in mol.GetAtoms():
            atom.SetIsotope(0)
        changes.append("isotope_removed")
    parent = Chem.Mol(mol) if mol.GetNumAtoms() == mol.GetNumHeavyAtoms() else Chem.RemoveHs(mol)
    if how.groups == "standardize":
        apply("metal_disconnected", _METALS.DisconnectInPlace, Chem.Mol.GetNumBonds)
        normal = Chem.Mol(parent)
        _FUNCTIONAL_GROUPS.normalizeInPlace(normal)
        # Normalization joins the charges of a sydnone, and the result cannot be parsed: then all groups stay as drawn.
        if _charges_of(normal) != _charges_of(parent) and _can_be_parsed(normal):
            parent = normal
            changes.append("normalized")
        apply("reionized", _ACIDS.reionizeInPlace, _charges_of)
    Chem.AssignStereochemistry(parent, cleanIt=True, force=True)
    if how.salts == "strip":
        apply("fragment_removed", _FRAGMENTS.chooseInPlace, Chem.Mol.GetNumAtoms)
    if how.charges == "neutralize":
        neutral = Chem.Mol(parent)
        _CHARGES.unchargeInPlace(neutral)
        # The uncharger turns [PF6-] into phosphorus of valence 7, and gives the ring of a metallocene a hydrogen but
        # leaves it aromatic. Neither can be parsed: such ions keep their charges, as drawn.
        if _charges_of(neutral) != _charges_of(parent) and _can_be_parsed(neutral):
            parent = neutral
            changes.append("neutralized")
    if how.tautomers == "canonical":
        drawn = Chem.MolToSmiles(parent)
        parent = _TAUTOMERS.Canonicalize(parent)
        if Chem.MolToSmiles(parent) != drawn:
            changes.append("tautomer")
    return parent, tuple(changes)


def _can_be_parsed(mol: Chem.Mol) -> bool:
    return Chem.MolFromSmiles(Chem.MolToSmiles(mol)) is not None


def _charges_of(mol: Chem.Mol) -> object:
    """Returns which atoms are charged: every change by MolStandardize's catalogues changes a charge."""
    return Chem.GetFormalCharge(mol), mol.GetSubstructMatches(_CHARGED, maxMatches=mol.GetNumAtoms())


def _diagnose(structure: Structure, parse: Callable[..., Chem.Mol | None]) -> Refusal:
    """Returns why a structure did not parse, judged by what it parses to without sanitization."""
    unsanitized = parse(structure.text, sanitize=False)
    if unsanitized is None:
        return Refusal("syntax", f"cannot be read as a {structure.form}{_complaint(structure)}")
    for problem in Chem.DetectChemistryProblems(unsanitized):
        reason: Reason = "aromaticity" if "Kekulize" in problem.GetType() else "valence"
        return Refusal(reason, _in_words(problem, unsanitized, structure.form))
    return Refusal("syntax", f"reads as a {structure.form}, but its stereo or hydrogens make no sense")


def _in_words(problem: Any, mol: Chem.Mol, form: str) -> str:
    """Returns a sentence about RDKit's problem with some atoms, numbered from 1 as chemists do, not from 0."""
    said = first_line(problem.Message())
    if problem.GetType() == "KekulizeException":
        atoms = [str(index + 1) for index in problem.GetAtomIndices()]
        listed = ", ".join(atoms[:12]) + (", ..." if len(atoms) > 12 else "")
        return (
            f"its aromatic atoms {listed} of the {form} cannot be given single and double bonds: one of them may lack "
            "its hydrogen, as in [nH], or a charge"
        )
    if problem.GetType() == "AtomKekulizeException":
        return f"atom {problem.GetAtomIdx() + 1} of the {form} is aromatic, but stands in no ring"
    if valence := re.search(r"(\d+), is greater than permitted", said):
        atom = mol.GetAtomWithIdx(problem.GetAtomIdx())
        charge = f"of charge {atom.GetFormalCharge():+d}" if atom.GetFormalCharge() else "without a charge"
        what = f"{atom.GetSymbol()} {charge}"
        return f"atom {atom.GetIdx() + 1} of the {form}, {what}, has a valence of {valence[1]}, more than it can have"
    return said


def _complaint(structure: Structure) -> str:
    """Returns ": " and RDKit's complaint about the syntax of a structure; empty if it logs none."""
    with rdBase.CaptureErrorLog() as log:
        if structure.form == "SMILES":
            Chem.MolFromSmiles(structure.text, sanitize=False)
        else:  # MolFromMolBlock does not log it as an error
            supplier = Chem.SDMolSupplier()
            supplier.SetData(structure.text, sanitize=False)
            next(supplier)
    if position := re.search(r"around position (\d+)", log.messages):
        return f": syntax error around character {position[1]}"
    said = re.search(r"(?:ERROR|SMILES Parse Error): (.+?)(?: for input: .*)?$", log.messages, re.MULTILINE)
    return f": {said[1]}" if said else ""


def first_line(text: object) -> str:
    """Returns the first line of an RDKit message, which is the sentence; a stack trace and conditions follow it."""
    return next(iter(str(text).strip().splitlines()), "no reason given")
