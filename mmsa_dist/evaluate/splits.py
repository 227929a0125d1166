"""Named splits, each a pure function of the molecules (and of a seed, for random ones), published as files.

`hu-scaffold` is the deterministic split of Hu et al. 2020 ("Strategies for pre-training graph neural networks",
arXiv 1905.12265): molecules are grouped by Bemis-Murcko scaffold with chirality; groups, largest first, fill train
up to 80 %, then valid up to 10 %, then test. `ogb-scaffold` does the same on SMILES exactly as given, which reproduces
the official sets of the Open Graph Benchmark; the two may differ for BBBP, ClinTox and ToxCast, whose SMILES Hu et al.
canonicalize. `file` is a split read from a file (`mmsa_dist.evaluate.split_files`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmsa_dist.evaluate.tasks import TaskData
from mmsa_dist.runtime.files import write_text_atomically

SplitName = Literal["hu-scaffold", "ogb-scaffold", "random"]
TRAIN, VALID = 0.8, 0.1
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """Molecules of a task for training, validation and test."""

    name: SplitName | Literal["file"]
    seed: int | None
    """None if the split does not depend on one."""
    train: NDArray[np.int64]
    """Positions among the molecules of `TaskData`."""
    valid: NDArray[np.int64]
    test: NDArray[np.int64]
    source: str | None = None
    """Name of the file without suffixes, for a split from a file."""
    compared: bool = True
    """False if its file has no SMILES, so that only the number of molecules could be compared."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the three sets, independent of order; results with equal digests are comparable."""
        sets = {part: sorted(getattr(self, part).tolist()) for part in PARTS}
        return hashlib.sha256(json.dumps(sets, sort_keys=True).encode()).hexdigest()

    @property
    def which(self) -> str:
        """Suffix after the task's name that tells its splits apart: ``, seed 1``, or ``, NAME`` of the file."""
        told = self.source if self.seed is None else f"seed {self.seed}"
        return "" if told is None else f", {told}"

    def write(self, folder: str | os.PathLike[str], data: TaskData) -> Path:
        """Writes the split with the SMILES of its molecules for `load_split`; returns the file."""
        stem = f"{data.task.name}-{self.name}" + ("" if self.seed is None else f"-seed{self.seed}")
        stem += "" if self.source is None else f"-{self.source}"
        path = Path(folder) / f"{stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "task": data.task.name,
            "split": self.name,
            "source": self.source,
            "seed": self.seed,
            "digest": self.digest,
            "smiles_digest": data.smiles_digest,
            "index_space": "position, from 0, among the rows of the file that RDKit parses; dropped_rows are the "
            "others, from 0 among all rows of the file, so that row 0 is what messages call record 1",
            "dropped_rows": [row for row, _ in data.dropped],
            **{part: getattr(self, part).tolist() for part in PARTS},
            "smiles": list(data.smiles),
        }
        write_text_atomically(path, json.dumps(about) + "\n")
        return path


def make_split(data: TaskData, name: SplitName, seed: int = 0) -> Split:
    """Splits a task 80/10/10.

    Args:
        data: the task.
        name: ``hu-scaffold``, ``ogb-scaffold`` or ``random``.
        seed: seed of the random split; the others ignore it.

    Raises:
        ValueError: the name is unknown, or there are too few molecules for three parts.
    """
    if name not in get_args(SplitName):
        raise ValueError(f"there is no split {name!r}; known: {', '.join(get_args(SplitName))}")
    if name == "random":
        parts = random_split(len(data), seed)
    else:
        parts = scaffold_split(data.smiles, canonical=name == "hu-scaffold" and data.task.canonical_scaffold)
    empty = [part for part, rows in zip(PARTS, parts, strict=True) if len(rows) == 0]
    if empty:
        raise ValueError(f"{data.task.name}: the split {name} of {len(data)} molecules leaves {empty[0]} empty")
    return Split(name, seed if name == "random" else None, *parts)


def random_split(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Splits 0..n-1 randomly 80/10/10."""
    order = np.random.default_rng(seed).permutation(n)
    train, valid = int(TRAIN * n), int((TRAIN + VALID) * n)
    return order[:train], order[train:valid], order[valid:]


def scaffold_split(
    smiles: Sequence[str], *, canonical: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Splits by Bemis-Murcko scaffold (module docstring).

    Args:
        smiles: n valid SMILES.
        canonical: compute scaffolds from RDKit's canonical SMILES instead of the SMILES as given.

    Returns:
        Positions of train, valid and test.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, scaffold in enumerate(scaffolds(smiles, canonical=canonical)):
        groups[scaffold].append(position)
    train: list[int] = []
    valid: list[int] = []
    test: list[int] = []
    n = len(smiles)
    # Largest group first; among groups of one size, the one whose first molecule comes last.
    for group in sorted(groups.values(), key=lambda rows: (len(rows), rows[0]), reverse=True):
        if len(train) + len(group) <= TRAIN * n:
            train += group
        elif len(train) + len(valid) + len(group) <= (TRAIN + VALID) * n:
            valid += group
        else:
            test += group
    return np.array(train, np.int64), np.array(valid, np.int64), np.array(test, np.int64)


def scaffolds(smiles: Iterable[str], *, canonical: bool = False) -> Iterator[str]:
    """Yields the Bemis-Murcko scaffold of each molecule with chirality; empty for molecules without rings.

    Args:
        smiles: valid SMILES.
        canonical: compute it from RDKit's canonical SMILES instead of the SMILES as given.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.Scaffolds import MurckoScaffold

    with rdBase.BlockLogs():
        for text in smiles:
            given = Chem.MolToSmiles(Chem.MolFromSmiles(text)) if canonical else text
            yield MurckoScaffold.MurckoScaffoldSmiles(smiles=given, includeChirality=True)
