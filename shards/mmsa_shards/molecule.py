"""Standardized parent -> the columns of a molecule: features, drawing, conformers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

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
from mmsa_shards.options import Columns, Conformers, Keys, Standardization
from mmsa_shards.read import Structure
from mmsa_shards.schema import STEPS_PER_ANGSTROM, STEPS_PER_DRAWING_UNIT
from mmsa_shards.standardize import Parent, Refusal, first_line, refused_if_lost, standardize_and

_LOG = logging.getLogger(__name__)

#: CPU seconds that a molecule may take if it is not embedded; most take a thousandth of that.
SECONDS_WITHOUT_EMBEDDING = 10.0


# Molecules share their empty arrays: pickled once for many molecules, they halve the cost of sending one.
_NO_DEPICTION = np.empty((0, 2), dtype=np.float32)
_NO_DESCRIPTORS = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Order:
    """A standardized molecule of A atoms whose columns are to be made."""

    id: str
    inchikey: str
    smiles: str
    given: NDArray[np.float32] | None = None
    """(n, A, 3), Å: coordinates from the input, with atoms in the order of `given_smiles`."""
    given_smiles: str | None = None
    """Has the skeleton of `smiles`, and its stereo as far as `smiles` specifies it. None means `smiles` itself."""
    given_source: str = "input"
    """One of `mmsa_shards.schema.CONFORMER_SOURCES`."""


def make_molecules(
    orders: Sequence[Order], columns: Columns, *, tell: Callable[[str], None] = _LOG.warning
) -> list[Molecule | Refusal]:
    """Makes molecules in a guard, so that none of them can hang or crash the caller.

    A molecule whose embedding takes too long, or crashes RDKit, is made again without embedding.

    Args:
        orders: standardized molecules.
        columns: to make.
        tell: called with a sentence if nvMolKit fails on all of them together; RDKit then embeds them one by one.

    Returns:
        In order, each molecule, or its refusal if it cannot be made even without embedding.

    Raises:
        PrepareError: nvMolKit is wanted, but it or its GPU is missing.
    """
    conformers = columns.conformers
    if conformers.mode == "etkdg" and conformers.backend == "nvmolkit":
        try:
            orders = _embedded_together(orders, conformers)
        except BatchError as error:
            tell(f"{error}; RDKit embeds them")
    made = _guarded(orders, columns)
    if conformers.mode == "etkdg":
        lost = [number for number, result in enumerate(made) if isinstance(result, Lost)]
        unembedded = dataclasses.replace(columns, conformers=dataclasses.replace(conformers, mode="given"))
        again = _guarded([orders[n] for n in lost], unembedded)
        for number, result in zip(lost, again, strict=True):
            made[number] = result
    return [refused_if_lost(result) for result in made]


def standardize_and_make(
    structures: Sequence[Structure], how: Standardization, keys: Keys, columns: Columns
) -> list[Molecule | Refusal]:
    """Makes molecules without ids, as `standardize_many` followed by `make_molecules` would.

    Both steps run in one guard, which saves sending every molecule there and back a second time. A molecule cannot be
    made again, so no conformers may be embedded.

    Args:
        structures: to parse.
        how: they are standardized.
        keys: whether InChIKeys are made.
        columns: to make; their conformers must not be embedded.
    """
    return standardize_and(structures, how, keys, then=[partial(_of_parent, columns=columns)])


def coordinates_fit(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Returns, for pairs of SMILES, whether coordinates of the second are coordinates of the first (see `Order`).

    RDKit runs in a guard; a pair that crashes it does not fit.
    """
    with free_guard() as guard:
        return [found is True for found in guard.map(_fit, pairs, seconds=SECONDS_WITHOUT_EMBEDDING)]


def _fit(pair: tuple[str, str]) -> bool:
    mol = Chem.MolFromSmiles(pair[0])
    return mol is not None and bool(_atoms_in(pair[1], mol))


def _of_parent(parent: Parent | Refusal, columns: Columns) -> Molecule | Refusal:
    if isinstance(parent, Refusal):
        return parent
    order = Order(id="", inchikey=parent.inchikey, smiles=parent.smiles)
    return make_molecule(order, columns)


def _embedded_together(orders: Sequence[Order], conformers: Conformers) -> list[Order]:
    """Returns the orders with the coordinates that nvMolKit found for those without; RDKit embeds the others."""
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


def _guarded(orders: Sequence[Order], columns: Columns) -> list[Molecule | Refusal | Lost]:
    conformers = columns.conformers
    seconds = conformers.timeout_s if conformers.mode == "etkdg" else SECONDS_WITHOUT_EMBEDDING
    with free_guard() as guard:
        return list(guard.map(partial(make_molecule, columns=columns), orders, seconds=seconds))


def make_molecule(order: Order, columns: Columns) -> Molecule | Refusal:
    """Makes one molecule in this process; see `make_molecules`."""
    mol = Chem.MolFromSmiles(order.smiles)
    if mol is None:
        return Refusal("standardization", f"its standardized form does not parse: {order.smiles}")
    xyz, source = _conformers(mol, order, columns.conformers)
    bonds, bond_ends = bond_features(mol)
    xy = _depiction(mol) if columns.depiction else _NO_DEPICTION
    if isinstance(xy, Refusal):
        return xy
    if kept := [conformer for conformer in xyz if fits(conformer, STEPS_PER_ANGSTROM)]:
        xyz = np.stack(kept)
    else:
        xyz, source = _no_conformers(mol.GetNumAtoms()), "none"
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
        descriptors=compute_descriptors(mol) if columns.descriptors else _NO_DESCRIPTORS,
    )


def _depiction(mol: Chem.Mol) -> NDArray[np.float32] | Refusal:
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
    return _no_conformers(mol.GetNumAtoms()), "none"


@cache
def _no_conformers(num_atoms: int) -> NDArray[np.float32]:
    return np.empty((0, num_atoms, 3), dtype=np.float32)


def _given(mol: Chem.Mol, order: Order) -> NDArray[np.float32] | None:
    """Returns the given coordinates with atoms in the order of `mol`; None if they belong to another molecule."""
    if order.given is None or order.given.shape[1] != mol.GetNumAtoms():
        return None
    if order.given_smiles is None or order.given_smiles == order.smiles:
        return order.given
    atoms = _atoms_in(order.given_smiles, mol)
    return order.given[:, list(atoms)] if atoms else None


def _atoms_in(smiles: str, mol: Chem.Mol) -> tuple[int, ...]:
    """Returns, for each atom of `mol`, its number in a SMILES; empty if the two are different molecules."""
    other = Chem.MolFromSmiles(smiles)
    if other is None or other.GetNumAtoms() != mol.GetNumAtoms():
        return ()
    # PubChem3D's record has stereo that the 2D record leaves open, so only stereo that the 2D record knows must agree.
    return other.GetSubstructMatch(mol, useChirality=True)
