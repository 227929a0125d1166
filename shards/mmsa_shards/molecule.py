"""Standardized parent -> the columns of a molecule: features, drawing, conformers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from mmsa_shards.block import Molecule, fits
from mmsa_shards.conformers import embed
from mmsa_shards.conformers_nvmolkit import BatchError, embed_many
from mmsa_shards.depiction import depict
from mmsa_shards.descriptors import compute_descriptors
from mmsa_shards.features import atom_features, bond_features
from mmsa_shards.guard import Lost, free_guard
from mmsa_shards.options import PrepareOptions, Standardization
from mmsa_shards.read import Structure
from mmsa_shards.schema import STEPS_PER_ANGSTROM, STEPS_PER_DRAWING_UNIT
from mmsa_shards.standardize import Keys, Parent, Refusal, first_line, refused_if_lost, standardize_and

_LOG = logging.getLogger(__name__)

#: Seconds of computing that a molecule may cost where it is not embedded; the usual is a thousandth of it.
SECONDS_WITHOUT_EMBEDDING = 10.0


@dataclass(frozen=True, kw_only=True)
class Conformers:
    """What to do about 3D."""

    mode: Literal["etkdg", "given", "none"]
    """As `PrepareOptions.conformers`."""
    count: int
    """Conformers per molecule."""
    seed: int
    timeout_s: float
    """Seconds of computing after which a molecule goes without conformers."""
    backend: Literal["rdkit", "nvmolkit"] = "rdkit"
    """As `PrepareOptions.conformer_backend`."""
    mmff_iterations: int = 0
    """Steps of MMFF94 minimization after embedding."""

    @classmethod
    def from_options(cls, options: PrepareOptions) -> Conformers:
        """Returns what the options of a preparation say about 3D."""
        return cls(
            mode=options.conformers,
            count=options.conformers_per_molecule,
            seed=options.seed,
            timeout_s=options.conformer_timeout_s,
            backend=options.conformer_backend,
            mmff_iterations=options.mmff_iterations,
        )


# Molecules share what they have none of, so that it travels once with many of them: half of what it costs to send one.
_NOT_DRAWN = np.empty((0, 2), dtype=np.float32)
_NOT_DESCRIBED = np.empty(0, dtype=np.float32)

_NO_CONFORMERS = Conformers(mode="none", count=0, seed=0, timeout_s=0.0)


@dataclass(frozen=True, kw_only=True)
class Order:
    """A standardized molecule of A atoms whose columns are wanted."""

    id: str
    inchikey: str
    smiles: str
    given: NDArray[np.float32] | None = None
    """(n, A, 3), Å: coordinates from the input, atoms in the order of `given_smiles`."""
    given_smiles: str | None = None
    """Of the same skeleton, and of no other stereo where that of `smiles` is known; None where it is `smiles`."""
    given_source: str = "input"
    """One of `mmsa_shards.schema.CONFORMER_SOURCES`."""


def make_molecules(
    orders: Sequence[Order],
    conformers: Conformers,
    *,
    drawn: bool = True,
    described: bool = False,
    tell: Callable[[str], None] = _LOG.warning,
) -> list[Molecule | Refusal]:
    """Makes molecules in a guard, so that none of them can hang or crash the caller.

    A molecule whose embedding takes too long, or ends RDKit, is made again without being embedded.

    Args:
        orders: standardized molecules.
        conformers: what to do about 3D.
        drawn: whether they are laid out in the plane, which takes longer than all else; otherwise `xy` is empty.
        described: whether their descriptors are computed.
        tell: called with a sentence where nvMolKit fails on all of them together, which RDKit then embeds one by one.

    Returns:
        In order, a molecule, or the refusal of one that cannot be made even so.

    Raises:
        PrepareError: nvMolKit is wanted, and it or its GPU is missing.
    """
    if conformers.mode == "etkdg" and conformers.backend == "nvmolkit":
        try:
            orders = _embedded_together(orders, conformers)
        except BatchError as error:
            tell(f"{error}; RDKit embeds them")
    make = partial(make_molecule, drawn=drawn, described=described)
    made = _guarded(orders, make, conformers)
    if conformers.mode == "etkdg":
        lost = [number for number, result in enumerate(made) if isinstance(result, Lost)]
        again = _guarded([orders[n] for n in lost], make, dataclasses.replace(conformers, mode="given"))
        for number, result in zip(lost, again, strict=True):
            made[number] = result
    return [refused_if_lost(result) for result in made]


def standardize_and_make(
    structures: Sequence[Structure], how: Standardization, keys: Keys, *, drawn: bool = True, described: bool = False
) -> list[Molecule | Refusal]:
    """Makes molecules without conformers and without ids, as `standardize_many` and `make_molecules` after it would.

    All is done in one guard and sent back once, where they send each molecule there and back twice.
    """
    return standardize_and(structures, how, keys, then=[partial(_of_parent, drawn=drawn, described=described)])


def coordinates_fit(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Says of pairs of SMILES whether coordinates of the second are coordinates of the first, as `Order` has them.

    RDKit works in a guard; what ends it does not fit.
    """
    with free_guard() as guard:
        return [found is True for found in guard.map(_fit, pairs, seconds=SECONDS_WITHOUT_EMBEDDING)]


def _fit(pair: tuple[str, str]) -> bool:
    mol = Chem.MolFromSmiles(pair[0])
    return mol is not None and bool(_atoms_in(pair[1], mol))


def _of_parent(parent: Parent | Refusal, *, drawn: bool, described: bool) -> Molecule | Refusal:
    if isinstance(parent, Refusal):
        return parent
    order = Order(id="", inchikey=parent.inchikey, smiles=parent.smiles)
    return make_molecule(order, _NO_CONFORMERS, drawn=drawn, described=described)


def _embedded_together(orders: Sequence[Order], conformers: Conformers) -> list[Order]:
    """Gives the orders without coordinates those of nvMolKit where it finds them; RDKit embeds the others."""
    bare = [number for number, order in enumerate(orders) if order.given is None]
    found = embed_many(
        [orders[number].smiles for number in bare],
        count=conformers.count,
        seed=conformers.seed,
        mmff_iterations=conformers.mmff_iterations,
    )
    results = list(orders)
    for number, xyz in zip(bare, found, strict=True):
        if xyz is not None:
            results[number] = dataclasses.replace(orders[number], given=xyz, given_source="etkdg")
    return results


def _guarded(
    orders: Sequence[Order], make: Callable[..., Molecule | Refusal], conformers: Conformers
) -> list[Molecule | Refusal | Lost]:
    seconds = conformers.timeout_s if conformers.mode == "etkdg" else SECONDS_WITHOUT_EMBEDDING
    with free_guard() as guard:
        return list(guard.map(partial(make, conformers=conformers), orders, seconds=seconds))


def make_molecule(
    order: Order, conformers: Conformers, *, drawn: bool = True, described: bool = False
) -> Molecule | Refusal:
    """Makes one molecule in this process; see `make_molecules`."""
    mol = Chem.MolFromSmiles(order.smiles)
    if mol is None:
        return Refusal("standardization", f"its standardized form does not parse: {order.smiles}")
    xyz, source = _conformers(mol, order, conformers)
    bonds, bond_ends = bond_features(mol)
    xy = _drawing(mol) if drawn else _NOT_DRAWN
    if isinstance(xy, Refusal):
        return xy
    if kept := [conformer for conformer in xyz if fits(conformer, STEPS_PER_ANGSTROM)]:
        xyz = np.stack(kept)
    else:
        xyz, source = _nowhere(mol.GetNumAtoms()), "none"
    return Molecule(
        id=order.id,
        inchikey=order.inchikey,
        smiles=order.smiles,
        atoms=atom_features(mol),
        bonds=bonds,
        bond_ends=bond_ends,
        xy=xy,
        conformers=xyz,
        conformer_source=source,
        descriptors=compute_descriptors(mol) if described else _NOT_DESCRIBED,
    )


def _drawing(mol: Chem.Mol) -> NDArray[np.float32] | Refusal:
    try:
        xy = depict(mol)
    except (RuntimeError, ValueError) as error:  # all of RDKit's exceptions derive from these two
        return Refusal("depiction", f"RDKit cannot draw it: {first_line(error)}")
    if not fits(xy, STEPS_PER_DRAWING_UNIT):
        return Refusal("depiction", "its drawing is too wide to be kept in a block")
    return xy


def _conformers(mol: Chem.Mol, order: Order, wanted: Conformers) -> tuple[NDArray[np.float32], str]:
    given = None if wanted.mode == "none" else _given(mol, order)
    if given is not None:
        return given[: wanted.count], order.given_source
    if wanted.mode == "etkdg":
        xyz = embed(
            mol,
            count=wanted.count,
            seed=wanted.seed,
            inchikey=order.inchikey,
            mmff_iterations=wanted.mmff_iterations,
        )
        if len(xyz):
            return xyz, "etkdg"
    return _nowhere(mol.GetNumAtoms()), "none"


@cache
def _nowhere(num_atoms: int) -> NDArray[np.float32]:
    return np.empty((0, num_atoms, 3), dtype=np.float32)


def _given(mol: Chem.Mol, order: Order) -> NDArray[np.float32] | None:
    """Returns the given coordinates, atoms in the order of `mol`; None where they are those of another molecule."""
    if order.given is None or order.given.shape[1] != mol.GetNumAtoms():
        return None
    if order.given_smiles is None or order.given_smiles == order.smiles:
        return order.given
    atoms = _atoms_in(order.given_smiles, mol)
    return order.given[:, list(atoms)] if atoms else None


def _atoms_in(smiles: str, mol: Chem.Mol) -> tuple[int, ...]:
    """Returns which atom of a SMILES each of `mol` is; nothing where the two are different molecules."""
    other = Chem.MolFromSmiles(smiles)
    if other is None or other.GetNumAtoms() != mol.GetNumAtoms():
        return ()
    # PubChem3D's record has stereo that the 2D record leaves open, so only what that knows must agree.
    return other.GetSubstructMatch(mol, useChirality=True)
