"""The block: the contract between preparation and training.

A WebDataset sample is one *block*: a tar member ``{shard}-{block}.arrow`` that holds an Arrow IPC stream with
one record batch of up to a few hundred molecules. Only this file defines its columns. Both sides import it, and it
needs nothing but pyarrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import pyarrow as pa

#: Version of the schema below; programs read blocks of this version only.
SCHEMA_VERSION = 3
#: Key of the version in the metadata of a block's schema.
VERSION_KEY = b"mmsa_schema_version"

#: Steps per ångström in `conformers`, whose coordinates are whole numbers of steps.
STEPS_PER_ANGSTROM = 1000
#: Steps per unit of RDKit's drawings in `xy`; a bond is about 1.5 units long.
STEPS_PER_DRAWING_UNIT = 100


class AtomColumn(IntEnum):
    """Columns of `atoms`: OGB's nine atom features, in OGB's order."""

    ATOMIC_NUMBER = 0
    CHIRALITY = 1
    DEGREE = 2
    FORMAL_CHARGE = 3
    HYDROGENS = 4
    RADICAL_ELECTRONS = 5
    HYBRIDIZATION = 6
    AROMATIC = 7
    IN_RING = 8


class BondColumn(IntEnum):
    """Columns of `bonds`: OGB's three bond features, then the bond direction of Hu et al."""

    TYPE = 0
    STEREO = 1
    CONJUGATED = 2
    DIRECTION = 3


@dataclass(frozen=True)
class Category:
    """A categorical feature: its name and the number of values it can take."""

    name: str
    size: int


_ATOM_SIZES = {
    AtomColumn.ATOMIC_NUMBER: 119,
    AtomColumn.CHIRALITY: 5,
    AtomColumn.DEGREE: 12,
    AtomColumn.FORMAL_CHARGE: 12,
    AtomColumn.HYDROGENS: 10,
    AtomColumn.RADICAL_ELECTRONS: 6,
    AtomColumn.HYBRIDIZATION: 6,
    AtomColumn.AROMATIC: 2,
    AtomColumn.IN_RING: 2,
}
_BOND_SIZES = {BondColumn.TYPE: 5, BondColumn.STEREO: 6, BondColumn.CONJUGATED: 2, BondColumn.DIRECTION: 3}

#: The features of `AtomColumn` (Hu et al. 2020 on Open Graph Benchmark, ``ogb.utils.features``).
#: The first two are, value for value, the atom features of Hu et al., "Strategies for pre-training GNNs", 2020.
ATOM_CATEGORIES: tuple[Category, ...] = tuple(
    Category(column.name.lower(), _ATOM_SIZES[column]) for column in AtomColumn
)

#: The features of `BondColumn`.
BOND_CATEGORIES: tuple[Category, ...] = tuple(
    Category(column.name.lower(), _BOND_SIZES[column]) for column in BondColumn
)

#: Where a conformer came from; ``none`` means that the molecule has no 3D modality.
CONFORMER_SOURCES: tuple[str, ...] = ("input", "pubchem3d", "etkdg", "none")

_ATOM = pa.list_(pa.field("item", pa.uint8(), nullable=False), len(ATOM_CATEGORIES))
_BOND = pa.list_(pa.field("item", pa.uint8(), nullable=False), len(BOND_CATEGORIES))
_ENDS = pa.list_(pa.field("item", pa.uint16(), nullable=False), 2)
_XY = pa.list_(pa.field("item", pa.int16(), nullable=False), 2)
_XYZ = pa.list_(pa.field("item", pa.int16(), nullable=False), 3)


def _rows(item: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", item, nullable=False))


BLOCK_SCHEMA: pa.Schema = pa.schema(
    [
        # The identifier in the input, such as CID2244.
        pa.field("id", pa.string(), nullable=False),
        # InChIKey and SMILES of the standardized parent. The SMILES is isomeric and canonical.
        pa.field("inchikey", pa.string(), nullable=False),
        pa.field("smiles", pa.string(), nullable=False),
        # One row per atom of the SMILES, with the columns of AtomColumn: heavy atoms, and the few hydrogens that are
        # explicit (deuterium, H2).
        pa.field("atoms", _rows(_ATOM), nullable=False),
        # Each bond once: the columns of BondColumn, and the numbers of its two atoms within the molecule.
        pa.field("bonds", _rows(_BOND), nullable=False),
        pa.field("bond_ends", _rows(_ENDS), nullable=False),
        # Depiction: the step to each atom from the atom before it, for the first atom (0, 0), in 1/100 of RDKit's
        # units (a bond is about 150 long). The cumulative sum gives coordinates relative to the first atom.
        pa.field("xy", _rows(_XY), nullable=False),
        # 0..n conformers of the same atoms in the same order, as steps of 1/1000 Å.
        pa.field("conformers", _rows(_rows(_XYZ)), nullable=False),
        pa.field("conformer_source", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        # The values of `mmsa_shards.descriptors.NAMES`, NaN where there is none; empty if they were not requested.
        pa.field("descriptors", _rows(pa.float32()), nullable=False),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION)},
)
