"""Structures as atoms and bonds, about a hundred bytes each, which the page's script draws on demand.

RDKit computes the layout, kekulizes and chooses the wedges; ``draw.html`` defines the style. An SVG for each of
20,000 molecules would make the page four times as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEPS = 255  # along the longer side of a structure


class Stroke(IntEnum):
    """How a bond is drawn, looking from its first to its second atom."""

    SINGLE = 0
    DOUBLE = 1
    """Two lines, one on each side of the axis."""
    DOUBLE_LEFT = 2
    """One line between the atoms and a shorter one on its left."""
    DOUBLE_RIGHT = 3
    TRIPLE = 4
    WEDGE = 5
    HASH = 6
    WAVY = 7
    CROSSED = 8
    """A double bond of unknown stereochemistry."""
    DASHED = 9
    """Any other kind, such as a dative bond."""


@dataclass(frozen=True)
class Structures:
    """n molecules with a atoms and b bonds in total, concatenated."""

    labels: list[tuple[str, int, int, int]]
    """Distinct atom labels: symbol (empty for an unlabelled carbon), hydrogens, charge, isotope."""
    atoms: NDArray[np.uint16]
    """(n,) atoms per molecule; 0 if the SMILES does not parse."""
    bonds: NDArray[np.uint16]
    """(n,) bonds per molecule."""
    x: NDArray[np.uint8]
    """(a,) horizontal positions; the longer side of each molecule is 255."""
    y: NDArray[np.uint8]
    """(a,) vertical positions, downwards."""
    label: NDArray[np.uint16]
    """(a,) indices into `labels`."""
    first: NDArray[np.uint16]
    """(b,) index of the first atom within the molecule."""
    second: NDArray[np.uint16]
    stroke: NDArray[np.uint8]
    """(b,) a `Stroke`."""


def pack(smiles: Sequence[str]) -> Structures:
    """Computes 2D layouts and packs them.

    Args:
        smiles: n SMILES; one that does not parse has no atoms.
    """
    numbers: dict[tuple[str, int, int, int], int] = {}
    atoms, bonds = [], []
    places: list[NDArray[np.uint8]] = []
    label: list[int] = []
    ends: list[tuple[int, int, int]] = []
    for text in smiles:
        mol = _laid_out(text)
        atoms.append(mol.GetNumAtoms() if mol else 0)
        bonds.append(mol.GetNumBonds() if mol else 0)
        if mol is None or not atoms[-1]:
            continue
        xy = mol.GetConformer().GetPositions()[:, :2] * (1, -1)
        places.append(_to_steps(xy))
        label += [numbers.setdefault(_label(atom), len(numbers)) for atom in mol.GetAtoms()]
        ends += [(*_ends(bond), _stroke(bond, xy)) for bond in mol.GetBonds()]
    xy = np.concatenate(places) if places else np.zeros((0, 2), np.uint8)
    of_bonds = np.array(ends, np.uint16).reshape(-1, 3)
    return Structures(
        labels=list(numbers),
        atoms=np.array(atoms, np.uint16),
        bonds=np.array(bonds, np.uint16),
        x=xy[:, 0],
        y=xy[:, 1],
        label=np.array(label, np.uint16),
        first=of_bonds[:, 0],
        second=of_bonds[:, 1],
        stroke=of_bonds[:, 2].astype(np.uint8),
    )


def _laid_out(smiles: str) -> Any:
    """Returns the kekulized molecule with 2D coordinates and wedges; None if `smiles` does not parse."""
    from rdkit import Chem, rdBase
    from rdkit.Chem.Draw import rdMolDraw2D

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        return None if mol is None else rdMolDraw2D.PrepareMolForDrawing(mol)


def _to_steps(xy: NDArray[np.float64]) -> NDArray[np.uint8]:
    low, high = xy.min(axis=0), xy.max(axis=0)
    return ((xy - low) * (_STEPS / max(*(high - low), 1e-6))).round().astype(np.uint8)


def _label(atom: Any) -> tuple[str, int, int, int]:
    hydrogens, charge, isotope = atom.GetTotalNumHs(), atom.GetFormalCharge(), atom.GetIsotope()
    on_a_line = all(bond.GetBondTypeAsDouble() == 2 for bond in atom.GetBonds()) and atom.GetDegree() == 2
    corner = atom.GetAtomicNum() == 6 and atom.GetDegree() > 0 and not (charge or isotope or on_a_line)
    return ("", 0, 0, 0) if corner else (atom.GetSymbol(), hydrogens, charge, isotope)


def _ends(bond: Any) -> tuple[int, int]:
    return bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()


def _stroke(bond: Any, xy: NDArray[np.float64]) -> Stroke:
    from rdkit.Chem import BondDir, BondStereo, BondType

    kind, direction = bond.GetBondType(), bond.GetBondDir()
    if kind == BondType.DOUBLE:
        if direction == BondDir.EITHERDOUBLE or bond.GetStereo() == BondStereo.STEREOANY:
            return Stroke.CROSSED
        return _double(bond, xy)
    if kind == BondType.TRIPLE:
        return Stroke.TRIPLE
    if kind != BondType.SINGLE:
        return Stroke.DASHED
    strokes = {BondDir.BEGINWEDGE: Stroke.WEDGE, BondDir.BEGINDASH: Stroke.HASH, BondDir.UNKNOWN: Stroke.WAVY}
    return strokes.get(direction, Stroke.SINGLE)


def _double(bond: Any, xy: NDArray[np.float64]) -> Stroke:
    """Returns the side of the second line: inside the smallest ring, else the side with more neighbours."""
    begin, end = _ends(bond)
    rings = bond.GetOwningMol().GetRingInfo()
    around = [tuple(ring) for ring in rings.AtomRings() if begin in ring and end in ring]
    if around and bond.IsInRing():
        smallest = min(around, key=len)
        beside = [xy[list(smallest)].mean(axis=0)]
    elif min(bond.GetBeginAtom().GetDegree(), bond.GetEndAtom().GetDegree()) == 1:
        return Stroke.DOUBLE
    else:
        ends = (bond.GetBeginAtom(), bond.GetEndAtom())
        beside = [xy[n.GetIdx()] for atom in ends for n in atom.GetNeighbors() if n.GetIdx() not in (begin, end)]
    along = xy[end] - xy[begin]
    # With y downwards, a positive cross product lies to the right of the direction from first to second atom.
    sides = [float(np.sign(along[0] * (p - xy[begin])[1] - along[1] * (p - xy[begin])[0])) for p in beside]
    return Stroke.DOUBLE_RIGHT if sum(sides) >= 0 else Stroke.DOUBLE_LEFT
