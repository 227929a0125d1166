"""Records of one interval -> distinct molecules: duplicates are merged, conformers joined.

The result does not depend on the order of the records, and molecules already in a shard count as records: merging
new records into a shard gives the same as merging all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

#: For pairs of SMILES, whether coordinates of the second are valid for the first.
Fit = Callable[[Sequence[tuple[str, str]]], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A standardized record, or a molecule of an existing shard."""

    id: str
    inchikey: str
    smiles: str
    xyz: tuple[bytes, ...]
    """Conformers of the input, each as returned by `mmsa_shards.block.conformers_to_bytes`."""
    xyz_smiles: str
    """The SMILES that defines the atom order of `xyz`."""
    conformer_source: str
    file: str
    number: int
    row: int | None = None
    """Row of a molecule in its existing shard; None if it cannot stay as it is."""


@dataclass(frozen=True)
class Merged:
    """The molecules of an interval, and how many records were merged."""

    stay: list[Entry]
    """Molecules of the shard whose columns are kept; the id may change."""
    make: list[Entry]
    """Molecules whose columns are to be computed, sorted by InChIKey."""
    duplicates: int
    joined: int


def merge(entries: Sequence[Entry], conformers: int, fit: Fit) -> Merged:
    """Merges the records of an interval, or of a part of it that splits no skeleton.

    Of the records with one InChIKey the first by content becomes the molecule, where 3D sorts before none;
    conformers of the others are added to it if they have the same SMILES, atom order and source.

    Args:
        entries: records, and the molecules already in the shard.
        conformers: maximum number of conformers of a molecule.
        fit: called for PubChem3D records whose SMILES differs from that of the 2D record of the same CID.
    """
    entries, joined = _join_by_cid(sorted(entries, key=_rank), fit)
    stay: list[Entry] = []
    make: list[Entry] = []
    for _, group in groupby(sorted(entries, key=_rank), key=attrgetter("inchikey")):
        first, *others = group
        alike = [first, *(other for other in others if _combination_key(other) == _combination_key(first))]
        xyz = tuple(sorted({conformer for entry in alike for conformer in entry.xyz})[:conformers])
        held = next((entry for entry in alike if entry.row is not None and entry.xyz == xyz), None)
        if held is None:
            make.append(replace(first, xyz=xyz, row=None))
        else:
            stay.append(replace(held, id=first.id))
    return Merged(stay, make, duplicates=len(entries) - len(stay) - len(make) - joined, joined=joined)


def _rank(entry: Entry) -> tuple[object, ...]:
    place = (entry.file, entry.number)
    return (
        entry.inchikey,
        not entry.xyz,
        *_combination_key(entry),
        entry.id,
        entry.xyz,
        *place,
        entry.conformer_source,
    )


def _combination_key(entry: Entry) -> tuple[object, ...]:
    """Key under which the conformers of two records may be combined."""
    return (entry.smiles, entry.conformer_source if entry.xyz else "", entry.xyz_smiles)


def _join_by_cid(entries: Sequence[Entry], fit: Fit) -> tuple[list[Entry], int]:
    """Gives PubChem3D's coordinates to the 2D record of the same CID and skeleton, which defines the molecule.

    The two often differ: the PubChem3D record defines every stereo centre of its conformer, the 2D record those that
    its depositor knew. If the coordinates do not `fit` (another tautomer or stereoisomer), the two are treated as
    separate records.
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
