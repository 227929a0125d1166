"""The molecular graphs of a task in columnar form, so that batches are slices instead of per-molecule objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsa_dist.data.columns import MoleculeColumns, from_block
from mmsa_dist.evaluate.methods import Inputs
from mmsa_dist.evaluate.tasks import TaskData
from mmsa_shards.options import SmilesOptions


@dataclass(frozen=True)
class Graphs:
    """Graphs of m out of n molecules."""

    columns: MoleculeColumns
    """m molecules."""
    place: NDArray[np.int64]
    """(n,) index of each molecule in `columns`; -1 without a graph."""

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns those of the molecules `rows` that have a graph."""
        return rows[self.place[rows] >= 0]

    def take(self, rows: NDArray[np.int64]) -> MoleculeColumns:
        """Returns the graphs of the molecules `rows`, all of which must have one."""
        return self.columns.take(self.place[rows])


def graphs(data: TaskData) -> Inputs:
    """Builds graphs of the SMILES as given, salts and charges included, as in the field's protocol."""
    from mmsa_shards.from_smiles import smiles_to_block

    read = smiles_to_block(data.smiles, SmilesOptions(standardization=None))
    place = np.full(len(data), -1, dtype=np.int64)
    place[read.rows] = np.arange(len(read.rows))
    return Inputs(Graphs(from_block(read.block), place), missing=len(read.refused))
