"""The block: the contract between preparation and training.

A WebDataset sample is one *block*: a tar member ``{shard}-{block}.arrow`` that holds an Arrow IPC stream with
one record batch of up to a few hundred molecules in columns. This file alone says what the columns are; both
sides import it, and it needs only pyarrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 3
VERSION_KEY = b"mmsa_schema_version"
"""Key of the version in the metadata of a block's schema."""

#: Steps of `conformers` in an ångström: they are whole thousandths of it.
STEPS_PER_ANGSTROM = 1000
#: Steps of `xy` in a unit of RDKit's drawings, in which a bond is about 1.5 long.
STEPS_PER_DRAWING_UNIT = 100


@dataclass(frozen=True)
class Category:
    """One categorical feature: its name and the number of values it can take."""

    name: str
    size: int


#: OGB's nine atom features in OGB's order (Hu et al. 2020 on Open Graph Benchmark, ``ogb.utils.features``).
#: The first two are, value for value, the atom features of Hu et al., "Strategies for pre-training GNNs", 2020.
ATOM_CATEGORIES: tuple[Category, ...] = (
    Category("atomic_number", 119),
    Category("chirality", 5),
    Category("degree", 12),
    Category("formal_charge", 12),
    Category("hydrogens", 10),
    Category("radical_electrons", 6),
    Category("hybridization", 6),
    Category("aromatic", 2),
    Category("in_ring", 2),
)

#: OGB's three bond features, then the bond direction of Hu et al.
BOND_CATEGORIES: tuple[Category, ...] = (
    Category("type", 5),
    Category("stereo", 6),
    Category("conjugated", 2),
    Category("direction", 3),
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
        # The source's own identifier, such as CID2244.
        pa.field("id", pa.string(), nullable=False),
        # Both of the standardized parent; the SMILES is isomeric and canonical.
        pa.field("inchikey", pa.string(), nullable=False),
        pa.field("smiles", pa.string(), nullable=False),
        # One row per atom of the SMILES: ATOM_CATEGORIES. Heavy atoms, and the few hydrogens that are no implicit
        # ones (deuterium, H2).
        pa.field("atoms", _rows(_ATOM), nullable=False),
        # Each bond once: BOND_CATEGORIES, and the two atom numbers within the molecule.
        pa.field("bonds", _rows(_BOND), nullable=False),
        pa.field("bond_ends", _rows(_ENDS), nullable=False),
        # Depiction: the step to each atom from the atom before it, the first (0, 0), in 1/100 of RDKit's units (a
        # bond is about 150 long). The cumulative sum gives places relative to the first atom.
        pa.field("xy", _rows(_XY), nullable=False),
        # 0..n conformers of those atoms in that order: likewise steps, in 1/1000 Å.
        pa.field("conformers", _rows(_rows(_XYZ)), nullable=False),
        pa.field("conformer_source", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        # Those of `mmsa_shards.descriptors.NAMES`, NaN where there is no value; empty where none were asked for.
        pa.field("descriptors", _rows(pa.float32()), nullable=False),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION)},
)
