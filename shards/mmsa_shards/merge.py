"""Records of one interval -> the molecules that they are: duplicates merged, conformers joined.

Nothing here depends on the order of the records, and what a shard holds already counts as a record: merging
new records into a shard gives what merging all of them at once would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

#: Of pairs of SMILES, whether coordinates of the second are coordinates of the first.
Fit = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A standardized record, or a molecule that a shard holds."""

    id: str
    inchikey: str
    smiles: str
    xyz: tuple[bytes, ...]
    """The conformers that were given, each as `mmsa_shards.block.conformers_to_bytes` has it."""
    xyz_smiles: str
    """The SMILES in whose order the atoms of `xyz` are."""
    conformer_source: str
    file: str
    number: int
    row: int | None = None
    """Of a molecule that a shard holds: where, if it can stay as it is."""


@dataclass(frozen=True)
class Merged:
    """What becomes of the records of an interval."""

    stay: list[Entry]
    """Molecules of the shard whose columns stay; the id may be another."""
    make: list[Entry]
    """Molecules whose columns are to be made, in the order of their InChIKeys."""
    duplicates: int
    joined: int


def merge(entries: Sequence[Entry], conformers: int, fit: Fit) -> Merged:
    """Merges the records of an interval, or of a part of it that parts no skeleton.

    Of records with one InChIKey the first by content becomes the molecule, one with 3D before one without; the
    conformers of the others that are drawn alike join its own.

    Args:
        entries: records, and the molecules that the shard holds.
        conformers: how many conformers a molecule may have.
        fit: asked of records of PubChem3D that are drawn otherwise than the 2D record of the same CID.
    """
    entries, joined = _join_by_cid(sorted(entries, key=_rank), fit)
    stay: list[Entry] = []
    make: list[Entry] = []
    for _, group in groupby(sorted(entries, key=_rank), key=attrgetter("inchikey")):
        first, *others = group
        alike = [first, *(other for other in others if _drawing(other) == _drawing(first))]
        xyz = tuple(sorted({conformer for entry in alike for conformer in entry.xyz})[:conformers])
        held = next((entry for entry in alike if entry.row is not None and entry.xyz == xyz), None)
        if held is None:
            make.append(replace(first, xyz=xyz, row=None))
        else:
            stay.append(replace(held, id=first.id))
    return Merged(stay, make, duplicates=len(entries) - len(stay) - len(make) - joined, joined=joined)


def _rank(entry: Entry) -> tuple[object, ...]:
    place = (entry.file, entry.number)
    return (entry.inchikey, not entry.xyz, *_drawing(entry), entry.id, entry.xyz, *place, entry.conformer_source)


def _drawing(entry: Entry) -> tuple[object, ...]:
    """Key under which the conformers of two records may be combined."""
    return (entry.smiles, entry.conformer_source if entry.xyz else "", entry.xyz_smiles)


def _join_by_cid(entries: Sequence[Entry], fit: Fit) -> tuple[list[Entry], int]:
    """Gives PubChem3D's coordinates to the 2D record of the same CID and skeleton, which says what the molecule is.

    The two often differ: PubChem3D's record has every stereo centre of its conformer, the 2D record those that
    its depositor knew. Where they differ so that the coordinates do not `fit` (a tautomer, another stereo), each is a
    record by itself, as all others are.
    """
    flat: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if not entry.xyz:
            flat.setdefault(_compound(entry), entry)
    drawn = {
        number: flat[_compound(entry)]
        for number, entry in enumerate(entries)
        if entry.conformer_source == "pubchem3d" and entry.xyz and _compound(entry) in flat
    }
    pairs = sorted({(to.smiles, entries[n].xyz_smiles) for n, to in drawn.items()})
    others = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    fits = {**dict.fromkeys(pairs, True), **dict(zip(others, fit(others) if others else (), strict=True))}
    result = list(entries)
    joined = 0
    for number, to in drawn.items():
        if fits[to.smiles, entries[number].xyz_smiles]:
            result[number] = replace(entries[number], inchikey=to.inchikey, smiles=to.smiles, row=None)
            joined += 1
    return result, joined


def _compound(entry: Entry) -> tuple[str, str]:
    return entry.id, entry.inchikey.partition("-")[0]
