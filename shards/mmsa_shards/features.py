"""RDKit molecule -> categorical columns of atoms and bonds, with the values of OGB and of Hu et al.

Sizes: A atoms, E bonds. All features are those of ``ogb.utils.features`` (Hu et al., "Open Graph Benchmark", 2020),
except the bond direction, which is that of Hu et al., "Strategies for pre-training graph neural networks", 2020. If no
double bond of a molecule has stereo, directions mean nothing and are set to "none".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdqueries

from mmsa_shards.schema import ATOM_CATEGORIES, BOND_CATEGORIES, AtomColumn, BondColumn

# Columns are made as bytes, not as arrays: for so few atoms, most of numpy's time would be its fixed cost per call.


def _table(category_of: Callable[[int], int]) -> bytes:
    """Returns a function of a byte as a table for `bytes.translate`."""
    return bytes(map(category_of, range(256)))


def _words(values: Mapping[int, Any], words: Sequence[str], other: int) -> bytes:
    """Returns the table from RDKit's enumeration values to categories; values without a word map to `other`."""
    names = {number: value.name for number, value in values.items()}
    return _table(lambda number: words.index(names[number]) if names.get(number) in words else other)


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


_ATOMIC_NUMBER = _table(lambda number: number - 1 if 0 < number < 119 else 118)
_DEGREE = _table(lambda degree: min(degree, 11))
_CHARGE = _table(lambda byte: _signed(byte) + 5 if abs(_signed(byte)) <= 5 else 11)
_HYDROGENS = _table(lambda count: min(count, 9))
_RADICAL_ELECTRONS = _table(lambda count: min(count, 5))
_HYBRIDIZATION = _words(
    Chem.HybridizationType.values,
    ("SP", "SP2", "SP3", "SP3D", "SP3D2"),
    other=ATOM_CATEGORIES[AtomColumn.HYBRIDIZATION].size - 1,
)
_BOND_TYPE = _words(
    Chem.BondType.values,
    ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC"),
    other=BOND_CATEGORIES[BondColumn.TYPE].size - 1,
)
# Neither vocabulary has a word for axial chirality or for the wedges of a drawing: both map to "none".
_BOND_STEREO = _words(
    Chem.BondStereo.values,
    ("STEREONONE", "STEREOZ", "STEREOE", "STEREOCIS", "STEREOTRANS", "STEREOANY"),
    other=0,
)
_BOND_DIRECTION = _words(Chem.BondDir.values, ("NONE", "ENDUPRIGHT", "ENDDOWNRIGHT"), other=0)


def _any_of(*queries: Chem.QueryAtom) -> Chem.Mol:
    """Returns a pattern that matches an atom if one of the queries does."""
    either, *others = queries
    for query in others:
        either.ExpandQuery(query, Chem.CompositeQueryType.COMPOSITE_OR)
    pattern = Chem.RWMol()
    pattern.AddAtom(either)
    return pattern.GetMol()


# Few atoms are chiral, charged or radicals. One search for all of these takes no longer than reading one of the
# properties of every atom.
_CHIRAL_OR_CHARGED = _any_of(
    rdqueries.HasChiralTagQueryAtom(),
    rdqueries.FormalChargeLessQueryAtom(0),
    rdqueries.FormalChargeGreaterQueryAtom(0),
    rdqueries.NumRadicalElectronsGreaterQueryAtom(0),
)
_DOUBLE = 1  # category of a double bond


def atom_features(mol: Chem.Mol) -> NDArray[np.uint8]:
    """Returns the atoms of a sanitized molecule as (A, 9) uint8, with the columns of `mmsa_shards.schema.AtomColumn`.

    In the first seven columns the last category means "anything else", as in OGB.
    """
    num_atoms = mol.GetNumAtoms()
    atoms = list(map(mol.GetAtomWithIdx, range(num_atoms)))
    atom = Chem.Atom
    chirality, charge, radical_electrons = bytearray(num_atoms), bytearray(num_atoms), bytearray(num_atoms)
    for (number,) in mol.GetSubstructMatches(_CHIRAL_OR_CHARGED, maxMatches=num_atoms):
        chirality[number] = min(int(atoms[number].GetChiralTag()), 4)
        charge[number] = atoms[number].GetFormalCharge() & 0xFF
        radical_electrons[number] = atoms[number].GetNumRadicalElectrons()
    # `map` over RDKit's unbound methods keeps the loops out of the interpreter. Enumerations are the most expensive.
    columns = (  # in the order of `AtomColumn`
        bytes(map(atom.GetAtomicNum, atoms)).translate(_ATOMIC_NUMBER),
        chirality,
        bytes(map(atom.GetTotalDegree, atoms)).translate(_DEGREE),
        charge.translate(_CHARGE),
        bytes(map(atom.GetTotalNumHs, atoms)).translate(_HYDROGENS),
        radical_electrons.translate(_RADICAL_ELECTRONS),
        bytes(map(atom.GetHybridization, atoms)).translate(_HYBRIDIZATION),
        bytes(map(atom.GetIsAromatic, atoms)),
        bytes(map(atom.IsInRing, atoms)),
    )
    return _as_columns(columns)


def bond_features(mol: Chem.Mol) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Returns the bonds of a sanitized molecule, each once and in RDKit's order.

    Directions express the stereo of double bonds. If no double bond has stereo, no bond has a direction.

    Returns:
        (E, 4) uint8 with the columns of `mmsa_shards.schema.BondColumn`, and (E, 2) uint16, the numbers of the two
        atoms.
    """
    num_bonds = mol.GetNumBonds()
    bonds = list(map(mol.GetBondWithIdx, range(num_bonds)))
    bond = Chem.Bond
    kind = bytes(map(bond.GetBondType, bonds)).translate(_BOND_TYPE)
    stereo = bytearray(num_bonds)
    for number, category in enumerate(kind):
        if category == _DOUBLE:  # only double bonds have E/Z stereo
            stereo[number] = _BOND_STEREO[int(bonds[number].GetStereo())]
    direction = bytes(map(bond.GetBondDir, bonds)).translate(_BOND_DIRECTION) if any(stereo) else bytes(num_bonds)
    columns = (  # in the order of `BondColumn`
        kind,
        stereo,
        bytes(map(bond.GetIsConjugated, bonds)),
        direction,
    )
    ends = np.empty((num_bonds, 2), dtype=np.uint16)
    ends[:, 0] = list(map(bond.GetBeginAtomIdx, bonds))
    ends[:, 1] = list(map(bond.GetEndAtomIdx, bonds))
    return _as_columns(columns), ends


def _as_columns(columns: Sequence[bytes | bytearray]) -> NDArray[np.uint8]:
    """Joins k columns of n bytes into an (n, k) array."""
    return np.frombuffer(b"".join(columns), dtype=np.uint8).reshape(len(columns), -1).T.copy()
