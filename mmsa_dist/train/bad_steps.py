"""Steps whose loss or gradient is not finite: how many in a row, and with which molecules."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mmsa_dist.data.loader import BlockReader
from mmsa_dist.runtime.distributed import rank


class BadStepsInARow(FloatingPointError):
    """Too many steps in a row were skipped. The message says where their molecules are listed, and what to do."""


class BadSteps:
    """Counts bad steps, identically on all ranks, and lists their molecules.

    Each rank writes ``rank-N.jsonl``: one object for each of its micro-batches whose loss or gradient was not finite,
    with the step, the losses by name and the ids of the molecules.

    Args:
        folder: folder of the lists; created with the first entry.
        reader: the training shards, for the ids of molecules.
        limit: number of bad steps in a row that ends the run.
    """

    def __init__(self, folder: Path, reader: BlockReader, limit: int) -> None:
        self._folder = folder
        self._reader = reader
        self._limit = limit
        self.in_a_row = 0
        """Number of bad steps since the last good one."""
        self.total = 0
        """Number of bad steps since the run was last started."""

    def list_molecules(self, step: int, index_B: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Adds a micro-batch of this rank to the list.

        Args:
            step: number of the step.
            index_B: (B,) int64, numbers of the molecules.
            losses: the loss terms by name, scalars.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        values = {name: float(value) for name, value in losses.items()}
        entry = {
            "step": step,
            "losses": {name: value if math.isfinite(value) else str(value) for name, value in values.items()},
            "molecules": self._reader.ids(index_B.cpu().numpy()),
        }
        with (self._folder / f"rank-{rank():05d}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def bad(self, step: int) -> None:
        """Counts a step that was skipped.

        Raises:
            BadStepsInARow: the limit is reached.
        """
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self._limit:
            raise self.error(step)

    def error(self, step: int) -> BadStepsInARow:
        """Returns the error of a row of bad steps, of which `step` is the last."""
        row = f"{self.in_a_row} steps in a row, up to step {step}," if self.in_a_row > 1 else f"step {step}, the last,"
        return BadStepsInARow(
            f"{row} had a loss or gradient that is not finite; their molecules are listed in {self._folder}. Lower "
            "train.lr, set train.clip, or train with train.precision=fp32, then --resume"
        )

    def good(self) -> None:
        """Resets the count of bad steps in a row."""
        self.in_a_row = 0
