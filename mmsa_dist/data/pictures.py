"""Pictures of molecules, drawn from depiction coordinates when a batch is made.

Shards store no pictures: OpenCV draws lines, discs and letters in RDKit's element colours, which makes rotation, flip
and scale free and shards some 40 times smaller. The geometry of a whole batch is computed at once; only the strokes
are drawn molecule by molecule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from mmsa_dist.data.columns import MoleculeColumns, places
from mmsa_shards.schema import STEPS_PER_DRAWING_UNIT, AtomColumn, BondColumn

_SYMBOLS = (  # noqa: SIM905 - a list literal would be five times as long
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr "
    "Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir "
    "Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl "
    "Mc Lv Ts Og *"
).split()
_CARBON = _SYMBOLS.index("C")
_NEUTRAL = 5  # index of formal charge 0 among OGB's -5..5

# RDKit's default palette, RGB.
_PALETTE = np.array([(0, 0, 0)] * len(_SYMBOLS), dtype=np.uint8)
for _symbol, _colour in {
    "N": (0, 0, 255),
    "O": (255, 0, 0),
    "F": (51, 204, 204),
    "P": (255, 127, 0),
    "S": (204, 204, 0),
    "Cl": (0, 205, 0),
    "Br": (127, 76, 25),
    "I": (160, 31, 240),
}.items():
    _PALETTE[_SYMBOLS.index(_symbol)] = _colour

_COLOURS: list[list[int]] = _PALETTE.tolist()

_WHITE = (255, 255, 255)
_SHIFT = 4  # bits of a pixel's fraction in OpenCV's fixed-point coordinates
_MARGIN = 0.09  # of the side, left free around the molecule
_LONGEST_BOND = 0.13  # of the side: small molecules are not enlarged beyond this
_BOND = 1.5  # length of a bond in depiction units
_GAP = 0.2  # distance between the strokes of a double bond, relative to the bond's length


@dataclass(frozen=True)
class Pose:
    """How each of n molecules is placed in its picture."""

    angle: np.ndarray
    """(n,) radians, counter-clockwise."""
    flip: np.ndarray
    """(n,) bool: mirrored left to right."""
    scale: np.ndarray
    """(n,) in (0, 1]: factor on the size that fills the picture."""


def draw_pictures(
    columns: MoleculeColumns, bond_ends: np.ndarray, *, size: int, pose: Pose | None = None
) -> np.ndarray:
    """Draws n molecules in their element colours on white.

    Args:
        columns: the molecules; `xy_steps` gives their shape.
        bond_ends: (E, 2) int64, atoms of each bond, numbered over the whole batch.
        size: side in pixels.
        pose: rotation, flip and scale; None draws the depiction as it is.

    Returns:
        (n, size, size, 3) uint8, RGB.
    """
    n = len(columns)
    pictures = np.full((n, size, size, 3), 255, dtype=np.uint8)
    atom_points, bond_length = _place(columns, size, pose)
    thickness = max(1, round(size / 224))
    strokes, stroke_molecule, stroke_element = _strokes(columns, bond_ends, atom_points, bond_length)
    for begin, end in _runs(stroke_molecule, stroke_element):
        colour = _COLOURS[stroke_element[begin]]
        picture = pictures[stroke_molecule[begin]]
        cv2.polylines(picture, list(strokes[begin:end]), False, colour, thickness, cv2.LINE_AA, _SHIFT)
    _draw_letters(pictures, columns, atom_points, bond_length)
    return pictures


def _runs(*keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """Returns the ranges of rows within which no key, (n,) each, changes."""
    changes = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(keys[0])]
    return ((begin, end) for begin, end in pairwise(borders) if begin < end)


def _draw_letters(
    pictures: np.ndarray, columns: MoleculeColumns, atom_points: np.ndarray, bond_length: np.ndarray
) -> None:
    """Labels the atoms that are not plain carbon, each on a cleared disc."""
    element, degree = columns.atoms[:, AtomColumn.ATOMIC_NUMBER], columns.atoms[:, AtomColumn.DEGREE]
    charge, hydrogens = columns.atoms[:, AtomColumn.FORMAL_CHARGE], columns.atoms[:, AtomColumn.HYDROGENS]
    lettered = np.flatnonzero((element != _CARBON) | (charge != _NEUTRAL) | (degree == 0))
    molecule = np.searchsorted(columns.atom_ptr, lettered, side="right") - 1
    points, bond = atom_points[lettered].astype(np.float64), bond_length[molecule].astype(np.float64)
    centres = np.rint(points * (1 << _SHIFT)).astype(np.int64)
    radii = np.rint(np.maximum(bond * 0.34, 2) * (1 << _SHIFT)).astype(np.int64)
    # Lists of Python numbers, because reading arrays one element at a time would cost as much as drawing. Flat lists,
    # because many small ones trigger the garbage collector.
    columns_of_letters = (molecule, element[lettered], charge[lettered], hydrogens[lettered] > 0)
    numbers = (*columns_of_letters, *points.T, *centres.T, radii, np.maximum(bond, 4.0) / 42)
    for i, z, q, has_hydrogen, x, y, centre_x, centre_y, radius, scale in zip(
        *(column.tolist() for column in numbers), strict=True
    ):
        label = _SYMBOLS[z] + ("H" if has_hydrogen else "") + _sign(q - _NEUTRAL)
        picture = pictures[i]
        cv2.circle(picture, (centre_x, centre_y), radius, _WHITE, -1, cv2.LINE_8, _SHIFT)
        thickness = 1 if scale < 0.75 else 2
        (width, height), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        corner = (round(x - width / 2), round(y + height / 2))
        cv2.putText(picture, label, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, _COLOURS[z], thickness, cv2.LINE_AA)


def _sign(charge: int) -> str:
    return "+" if charge > 0 else "-" if charge < 0 else ""


def _place(columns: MoleculeColumns, size: int, pose: Pose | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns atom positions (A, 2) and bond lengths (n,), both in pixels."""
    n = len(columns)
    sizes = np.diff(columns.atom_ptr)
    molecule = np.repeat(np.arange(n), sizes)
    xy = places(columns.xy_steps, columns.atom_ptr, STEPS_PER_DRAWING_UNIT)
    xy[:, 1] *= -1  # the y axis of pixels points down
    if pose is not None:
        cos, sin = np.cos(pose.angle)[molecule], np.sin(pose.angle)[molecule]
        mirror = np.where(pose.flip, -1, 1).astype(np.float32)[molecule]
        x, y = xy[:, 0] * mirror, xy[:, 1]
        xy = np.stack([cos * x + sin * y, cos * y - sin * x], axis=1)
    low = np.minimum.reduceat(xy, columns.atom_ptr[:-1])
    high = np.maximum.reduceat(xy, columns.atom_ptr[:-1])
    extent = np.maximum((high - low).max(axis=1), 1e-3)
    zoom = np.minimum(size * (1 - 2 * _MARGIN) / extent, size * _LONGEST_BOND / _BOND)
    if pose is not None:
        zoom = zoom * pose.scale
    middle = (low + high) / 2
    points = (xy - middle[molecule]) * zoom[molecule][:, None] + size / 2
    return points, zoom * _BOND


def _strokes(
    columns: MoleculeColumns, bond_ends: np.ndarray, points: np.ndarray, bond_length: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns half-bond strokes (T, 2, 2) in fixed point, sorted by their molecules (T,) and elements (T,)."""
    kind = columns.bonds[:, BondColumn.TYPE]
    copies = np.array([1, 2, 3, 2, 1])[kind]  # single, double, triple, aromatic, other
    bond = np.repeat(np.arange(len(kind)), copies)
    nth = np.arange(len(bond)) - np.repeat(np.cumsum(copies) - copies, copies)
    offset = (nth - (copies[bond] - 1) / 2).astype(np.float32) * _GAP
    begin, end = points[bond_ends[bond, 0]], points[bond_ends[bond, 1]]
    along = end - begin
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    across /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    molecule_of_bond = np.repeat(np.arange(len(columns)), np.diff(columns.bond_ptr))
    shift = across * (offset * bond_length[molecule_of_bond[bond]])[:, None]
    begin, end = begin + shift, end + shift
    half = (begin + end) / 2
    strokes = np.stack([np.stack([begin, half], axis=1), np.stack([half, end], axis=1)], axis=1)
    fixed = np.round(strokes.reshape(-1, 2, 2) * (1 << _SHIFT)).astype(np.int32)
    element = columns.atoms[bond_ends[bond], AtomColumn.ATOMIC_NUMBER].reshape(-1)
    molecule = np.repeat(molecule_of_bond[bond], 2)
    order = np.lexsort((element, molecule))
    return fixed[order], molecule[order], element[order]
