"""SMILES -> block, or InChIKeys, within one process: preparation without files and without Ray."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmsa_shards import conformers as embedding
from mmsa_shards import standardize
from mmsa_shards.block import Molecule, molecules_to_block
from mmsa_shards.molecule import Conformers, Order, make_molecules, standardize_and_make
from mmsa_shards.options import Standardization
from mmsa_shards.read import Structure
from mmsa_shards.standardize import Keys, Parent, Refusal, standardize_many


def versions() -> dict[str, str]:
    """What makes a molecule of a SMILES, with its version: of another, molecules may be others."""
    return {
        "rdkit": importlib.metadata.version("rdkit"),
        "the recipe of conformers": str(embedding.RECIPE),
        "the recipe of parents": str(standardize.RECIPE),
    }


def smiles_to_block(
    smiles: Sequence[str | Structure | None],
    ids: Sequence[str] | None = None,
    *,
    conformers: Literal["none", "etkdg"],
    seed: int = 0,
    conformer_timeout_s: float = 0.0,
    standardization: Standardization | None,
    keys: Keys = "needed",
    drawn: bool = True,
    described: bool = False,
) -> tuple[pa.RecordBatch, NDArray[np.int64], dict[int, tuple[str, str]]]:
    """Turns SMILES into a block exactly as preparation does, without Ray.

    Args:
        smiles: what to read, SMILES or structures as text; None and the empty string are refused like any other that
            is no molecule. Coordinates of a molfile do not count.
        ids: one per SMILES; None takes the row number.
        conformers: `etkdg` embeds one conformer per molecule, `none` leaves out the 3D modality.
        seed: of the embedding.
        conformer_timeout_s: seconds that the embedding of one molecule may take before it goes without 3D.
        standardization: as in the preparation; None takes the SMILES, which must parse, as they are given, and
            makes no InChIKeys.
        keys: whether InChIKeys are made, a third of the time without conformers; `etkdg` draws its seeds from them.
        drawn: whether molecules are laid out in the plane, which takes longer than all else; without it no picture
            can be drawn of the block, and none is refused for its drawing.
        described: whether the block holds descriptors.

    Returns:
        The block of the N molecules that were read; their (N,) int64 rows in `smiles`, ascending; and for
        every other row the reason (a word) and the message (a sentence).

    Raises:
        ValueError: conformers are to be embedded without InChIKeys.
    """
    if conformers == "etkdg" and keys == "none":
        raise ValueError("conformers='etkdg' draws its seeds from InChIKeys: keys='none' would give other conformers")
    wanted = Conformers(mode=conformers, count=1, seed=seed, timeout_s=conformer_timeout_s)
    results = _results(smiles, standardization, keys, wanted, drawn=drawn, described=described)
    refused = ((row, made) for row, made in enumerate(results) if isinstance(made, Refusal))
    refusals: dict[int, tuple[str, str]] = {row: (made.reason, made.message) for row, made in refused}
    rows = np.asarray([row for row in range(len(results)) if row not in refusals], dtype=np.int64)
    block = molecules_to_block([made for made in results if isinstance(made, Molecule)])
    names = pa.array([str(row) if ids is None else ids[row] for row in rows.tolist()], pa.string())
    return block.set_column(block.schema.get_field_index("id"), block.schema.field("id"), names), rows, refusals


def standard_inchikeys(smiles: Sequence[str], standardization: Standardization) -> list[str | None]:
    """Returns the InChIKey under which preparation files each SMILES; None for those that it refuses.

    Args:
        smiles: what to read.
        standardization: as in the preparation.
    """
    parents = standardize_many([Structure("SMILES", text) for text in smiles], standardization)
    return [None if isinstance(parent, Refusal) else parent.inchikey for parent in parents]


def _results(
    smiles: Sequence[str | Structure | None],
    standardization: Standardization | None,
    keys: Keys,
    conformers: Conformers,
    *,
    drawn: bool,
    described: bool,
) -> list[Molecule | Refusal]:
    """What becomes of each row; the molecules have no ids yet."""
    structures = [row if isinstance(row, Structure) else Structure("SMILES", row or "") for row in smiles]
    if standardization is None:
        parents: Sequence[Parent | Refusal] = [Parent(smiles=text, inchikey="") for _, text in structures]
    elif conformers.mode == "none":
        return standardize_and_make(structures, standardization, keys, drawn=drawn, described=described)
    else:
        parents = standardize_many(structures, standardization, keys=keys)
    orders = [Order(id="", inchikey=p.inchikey, smiles=p.smiles) for p in parents if isinstance(p, Parent)]
    made = iter(make_molecules(orders, conformers, drawn=drawn, described=described))
    return [parent if isinstance(parent, Refusal) else next(made) for parent in parents]
