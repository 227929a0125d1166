"""Steps whose loss or gradient is not finite: how many in a row, and which molecules were in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mmsa_dist.data.loader import BlockReader
from mmsa_dist.runtime.distributed import rank


class BadStepsInARow(FloatingPointError):
    """Too many steps in a row were skipped; the message says where their molecules are listed and what to do."""


class BadSteps:
    """Counts bad steps, alike on all ranks, and keeps a list of what was in them.

    The list is ``rank-N.jsonl`` in a folder of the run: an object for each micro-batch of this rank whose loss or
    gradient was not finite, with the step, the losses by name and the ids of the molecules.

    Args:
        folder: of the lists; made when there is something to list.
        reader: the shards trained on, which know the molecules' ids.
        limit: bad steps in a row that end the run.
    """

    def __init__(self, folder: Path, reader: BlockReader, limit: int) -> None:
        self._folder = folder
        self._reader = reader
        self._limit = limit
        self._in_a_row = 0
        self.total = 0
        """Bad steps so far in this start of the run."""

    def list_molecules(self, step: int, index_B: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Lists a micro-batch of this rank."""
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
            BadStepsInARow: it was one too many.
        """
        self.total += 1
        self._in_a_row += 1
        if self._in_a_row >= self._limit:
            raise BadStepsInARow(
                f"{self._in_a_row} steps in a row, up to step {step}, had a loss or gradient that is not finite; their "
                f"molecules stand in {self._folder}. Lower train.lr, set train.clip, or train with "
                "train.precision=fp32, then --resume"
            )

    def good(self) -> None:
        """Ends a row."""
        self._in_a_row = 0
