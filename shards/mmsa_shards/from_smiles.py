"""SMILES -> block, or InChIKeys, within one process: preparation without files and without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmsa_shards.block import Molecule, molecules_to_block
from mmsa_shards.molecule import Conformers, Order, make_molecules
from mmsa_shards.options import Standardization
from mmsa_shards.read import Structure
from mmsa_shards.standardize import Keys, Parent, Refusal, standardize_many


def smiles_to_block(
    smiles: Sequence[str | None],
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
        smiles: what to read; None and the empty string are refused like any other that is no molecule.
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
    refusals: dict[int, tuple[str, str]] = {}
    orders: list[Order] = []
    rows: list[int] = []
    for row, parent in enumerate(_parents(smiles, standardization, keys)):
        if isinstance(parent, Refusal):
            refusals[row] = (parent.reason, parent.message)
        else:
            name = str(row) if ids is None else ids[row]
            orders.append(Order(id=name, inchikey=parent.inchikey, smiles=parent.smiles))
            rows.append(row)
    wanted = Conformers(mode=conformers, count=1, seed=seed, timeout_s=conformer_timeout_s)
    molecules: list[Molecule] = []
    kept: list[int] = []
    for row, made in zip(rows, make_molecules(orders, wanted, drawn=drawn, described=described), strict=True):
        if isinstance(made, Refusal):
            refusals[row] = (made.reason, made.message)
        else:
            molecules.append(made)
            kept.append(row)
    return molecules_to_block(molecules), np.asarray(kept, dtype=np.int64), refusals


def standard_inchikeys(smiles: Sequence[str], standardization: Standardization) -> list[str | None]:
    """Returns the InChIKey under which preparation files each SMILES; None for those that it refuses.

    Args:
        smiles: what to read.
        standardization: as in the preparation.
    """
    parents = standardize_many([Structure("SMILES", text) for text in smiles], standardization)
    return [None if isinstance(parent, Refusal) else parent.inchikey for parent in parents]


def _parents(
    smiles: Sequence[str | None], standardization: Standardization | None, keys: Keys
) -> Iterable[Parent | Refusal]:
    if standardization is None:
        return [Parent(smiles=text or "", inchikey="") for text in smiles]
    return standardize_many([Structure("SMILES", text or "") for text in smiles], standardization, keys=keys)
