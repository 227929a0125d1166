"""SMILES -> block, or InChIKeys, within one process: preparation without files and without Ray."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmsa_shards import conformers, standardize
from mmsa_shards.block import Molecule, molecules_to_block
from mmsa_shards.molecule import Order, make_molecules, standardize_and_make
from mmsa_shards.options import SmilesOptions, Standardization
from mmsa_shards.read import Structure
from mmsa_shards.standardize import Parent, Refusal, standardize_many


@dataclass(frozen=True)
class ReadSmiles:
    """A block of molecules, and what became of the rows that they were read from.

    Row r is molecule i of the block if rows[i] = r. Every other row was refused.
    """

    block: pa.RecordBatch
    """N molecules."""
    rows: NDArray[np.int64]
    """(N,), ascending."""
    refused: dict[int, tuple[str, str]]
    """By row, the reason (a word) and the message (a sentence)."""


def versions() -> dict[str, str]:
    """Returns the versions of everything that turns SMILES into molecules; with others, molecules may differ."""
    return {
        "rdkit": importlib.metadata.version("rdkit"),
        "the recipe of conformers": str(conformers.RECIPE),
        "the recipe of parents": str(standardize.RECIPE),
    }


def smiles_to_block(
    smiles: Sequence[str | Structure | None], options: SmilesOptions, ids: Sequence[str] | None = None
) -> ReadSmiles:
    """Turns SMILES into a block exactly as preparation does, without Ray.

    Args:
        smiles: SMILES, or structures as text. None and the empty string are refused as any other text is that is no
            molecule. The coordinates of a molfile are ignored.
        options: how they are standardized, and which columns are made.
        ids: one per row; None takes the row number.
    """
    results = _results(smiles, options)
    refused = ((row, made) for row, made in enumerate(results) if isinstance(made, Refusal))
    refusals: dict[int, tuple[str, str]] = {row: (made.reason, made.message) for row, made in refused}
    rows = np.asarray([row for row in range(len(results)) if row not in refusals], dtype=np.int64)
    block = molecules_to_block([made for made in results if isinstance(made, Molecule)])
    names = pa.array([str(row) if ids is None else ids[row] for row in rows.tolist()], pa.string())
    named = block.set_column(block.schema.get_field_index("id"), block.schema.field("id"), names)
    return ReadSmiles(named, rows, refusals)


def standard_inchikeys(smiles: Sequence[str], standardization: Standardization) -> list[str | None]:
    """Returns the InChIKey under which preparation files each SMILES; None for those that it refuses.

    Args:
        smiles: one molecule each.
        standardization: as in the preparation.
    """
    parents = standardize_many([Structure("SMILES", text) for text in smiles], standardization)
    return [None if isinstance(parent, Refusal) else parent.inchikey for parent in parents]


def _results(smiles: Sequence[str | Structure | None], options: SmilesOptions) -> list[Molecule | Refusal]:
    """Returns the molecule, still without an id, or the refusal of each row."""
    structures = [row if isinstance(row, Structure) else Structure("SMILES", row or "") for row in smiles]
    if options.standardization is None:
        parents: Sequence[Parent | Refusal] = [Parent(smiles=text, inchikey="") for _, text in structures]
    elif options.columns.conformers.mode == "none":
        return standardize_and_make(structures, options.standardization, options.keys, options.columns)
    else:
        parents = standardize_many(structures, options.standardization, keys=options.keys)
    orders = [Order(id="", inchikey=p.inchikey, smiles=p.smiles) for p in parents if isinstance(p, Parent)]
    made = iter(make_molecules(orders, options.columns))
    return [parent if isinstance(parent, Refusal) else next(made) for parent in parents]
