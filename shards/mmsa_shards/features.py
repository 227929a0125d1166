"""RDKit molecule -> categorical columns of atoms and bonds, value for value those of OGB and of Hu et al.

Sizes: A atoms, E bonds. Sources: ``ogb.utils.features`` (Hu et al., "Open Graph Benchmark", 2020) for
    everything but the bond direction, which is that of Hu et al., "Strategies for pre-training graph neural
    networks", 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdqueries

from mmsa_shards.schema import ATOM_CATEGORIES, BOND_CATEGORIES


def _table(values: Mapping[int, Any], words: Sequence[str], other: int) -> NDArray[np.uint8]:
    """Returns the table from RDKit's number of an enumeration to the category, `other` where there is none."""
    table = np.full(max(values) + 1, other, dtype=np.uint8)
    for number, value in values.items():
        if value.name in words:
            table[number] = words.index(value.name)
    return table


_HYBRIDIZATION = _table(
    Chem.HybridizationType.values, ("SP", "SP2", "SP3", "SP3D", "SP3D2"), other=ATOM_CATEGORIES[6].size - 1
)
_BOND_TYPE = _table(Chem.BondType.values, ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC"), other=BOND_CATEGORIES[0].size - 1)
# Neither vocabulary has a word for axial chirality or for the wedges of a drawing: they count as none.
_BOND_STEREO = _table(
    Chem.BondStereo.values,
    ("STEREONONE", "STEREOZ", "STEREOE", "STEREOCIS", "STEREOTRANS", "STEREOANY"),
    other=0,
)
_BOND_DIRECTION = _table(Chem.BondDir.values, ("NONE", "ENDUPRIGHT", "ENDDOWNRIGHT"), other=0)

_HAS_CHIRAL_TAG = rdqueries.HasChiralTagQueryAtom()
_DOUBLE = 1


def _column(getter: Callable[[Any], Any], objects: Sequence[Any]) -> NDArray[np.int64]:
    # `map` over RDKit's unbound method keeps the loop out of the interpreter.
    return np.fromiter(map(getter, objects), dtype=np.int64, count=len(objects))


def atom_features(mol: Chem.Mol) -> NDArray[np.uint8]:
    """Returns the atoms of a sanitized molecule as (A, 9) uint8: `mmsa_shards.schema.ATOM_CATEGORIES`.

    The last category of the first seven means "anything else", as in OGB.
    """
    num_atoms = mol.GetNumAtoms()
    atoms = list(map(mol.GetAtomWithIdx, range(num_atoms)))
    atom = Chem.Atom
    atomic_number = _column(atom.GetAtomicNum, atoms)
    charge = _column(atom.GetFormalCharge, atoms)
    out = np.zeros((num_atoms, len(ATOM_CATEGORIES)), dtype=np.uint8)
    out[:, 0] = np.where(atomic_number > 0, atomic_number - 1, 118)
    # Few atoms are chiral, and reading an enumeration is what costs most here.
    for centre in mol.GetAtomsMatchingQuery(_HAS_CHIRAL_TAG):
        out[centre.GetIdx(), 1] = min(int(centre.GetChiralTag()), 4)
    out[:, 2] = np.minimum(_column(atom.GetTotalDegree, atoms), 11)
    out[:, 3] = np.where(np.abs(charge) <= 5, charge + 5, 11)
    out[:, 4] = np.minimum(_column(atom.GetTotalNumHs, atoms), 9)
    out[:, 5] = np.minimum(_column(atom.GetNumRadicalElectrons, atoms), 5)
    out[:, 6] = _HYBRIDIZATION[_column(atom.GetHybridization, atoms)]
    out[:, 7] = _column(atom.GetIsAromatic, atoms)
    out[:, 8] = _column(atom.IsInRing, atoms)
    return out


def bond_features(mol: Chem.Mol) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Returns the bonds of a sanitized molecule, each once and in RDKit's order.

    Returns:
        (E, 4) uint8: `mmsa_shards.schema.BOND_CATEGORIES`, and (E, 2) uint16: the numbers of the two atoms.
    """
    num_bonds = mol.GetNumBonds()
    bonds = list(map(mol.GetBondWithIdx, range(num_bonds)))
    bond = Chem.Bond
    out = np.zeros((num_bonds, len(BOND_CATEGORIES)), dtype=np.uint8)
    out[:, 0] = _BOND_TYPE[_column(bond.GetBondType, bonds)]
    for number in np.flatnonzero(out[:, 0] == _DOUBLE):  # no other bond has E/Z stereo
        out[number, 1] = _BOND_STEREO[int(bonds[number].GetStereo())]
    out[:, 2] = _column(bond.GetIsConjugated, bonds)
    out[:, 3] = _BOND_DIRECTION[_column(bond.GetBondDir, bonds)]
    ends = np.empty((num_bonds, 2), dtype=np.uint16)
    ends[:, 0] = _column(bond.GetBeginAtomIdx, bonds)
    ends[:, 1] = _column(bond.GetEndAtomIdx, bonds)
    return out, ends
