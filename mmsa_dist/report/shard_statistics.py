"""Counts and sizes of the molecules in a folder of shards."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa_dist.report.ids import IdCount, SharedIds
from mmsa_shards.manifest import Ledger, Manifest, ShardEntry
from mmsa_shards.schema import AtomColumn
from mmsa_shards.shard import read_block

_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
_SIZE_BINS = 16  # at most
_BIN_WIDTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class SplitSize:
    """Size of a split."""

    split: str
    shards: int
    blocks: int
    molecules: int
    bytes: int


@dataclass(frozen=True)
class SizeBin:
    """Number of molecules in a range of heavy-atom counts."""

    least: int
    most: int | None
    """Inclusive upper limit; None if there is none."""
    molecules: int

    @property
    def name(self) -> str:
        """Label such as ``10–14`` or ``60+``."""
        if self.most is None:
            return f"{self.least}+"
        return f"{self.least}–{self.most}" if self.most > self.least else f"{self.least}"


@dataclass(frozen=True)
class ShardStatistics:
    """Result of `inspect_shards`."""

    folder: str
    digest: str
    splits: tuple[SplitSize, ...]
    ledger: Ledger
    reject_reasons: dict[str, int]
    conformer_sources: dict[str, int]
    standardization: dict[str, int]
    molecules_read: int
    """Number of molecules behind the figures below."""
    atoms_per_molecule: NDArray[np.int64]
    """(molecules_read,) heavy atoms, ascending."""
    bonds: int
    atoms_by_element: dict[str, int]
    """Atoms of each element, the most frequent first."""
    molecules_by_element: dict[str, int]
    """Molecules that contain each element."""
    shared_ids: SharedIds
    """Ids shared by several molecules."""

    @property
    def molecules(self) -> int:
        """Molecules in all splits."""
        return sum(split.molecules for split in self.splits)

    @property
    def bytes_per_molecule(self) -> float:
        """Bytes on disk per molecule over all splits; NaN without molecules."""
        return sum(split.bytes for split in self.splits) / self.molecules if self.molecules else float("nan")

    @property
    def sizes(self) -> tuple[SizeBin, ...]:
        """Histogram of heavy-atom counts; the largest 1 % of molecules may share the last bin."""
        n = self.atoms_per_molecule
        if not len(n):
            return ()
        tail = int(np.quantile(n, 0.99))
        first = int(n[0])
        width = next(width for width in _BIN_WIDTHS if tail // width - first // width < _SIZE_BINS - 1)
        edges = np.arange(first // width, tail // width + 2) * width
        counts = np.diff(np.searchsorted(n, edges))
        bins = [SizeBin(int(e), int(e) + width - 1, int(c)) for e, c in zip(edges[:-1], counts, strict=True)]
        above = len(n) - int(counts.sum())
        return (*bins, SizeBin(int(edges[-1]), None, above)) if above else tuple(bins)

    def to_json(self) -> dict[str, Any]:
        """Returns all statistics as JSON-serializable values."""
        n = self.atoms_per_molecule
        quantiles: list[float] = np.quantile(n, _QUANTILES).tolist() if len(n) else []
        return {
            "folder": self.folder,
            "digest": self.digest,
            "molecules": self.molecules,
            "bytes": sum(split.bytes for split in self.splits),
            "bytes_per_molecule": self.bytes_per_molecule if self.molecules else None,
            "splits": {split.split: {k: v for k, v in asdict(split).items() if k != "split"} for split in self.splits},
            "ledger": asdict(self.ledger),
            "reject_reasons": self.reject_reasons,
            "conformer_sources": self.conformer_sources,
            "standardization": self.standardization,
            "molecules_read": self.molecules_read,
            "heavy_atoms": {
                "mean": float(n.mean()) if len(n) else None,
                "quantiles": {f"{100 * q:g}%": value for q, value in zip(_QUANTILES, quantiles, strict=False)},
                "histogram": [asdict(size) for size in self.sizes],
            },
            "bonds": self.bonds,
            "elements": {
                name: {"atoms": atoms, "molecules": self.molecules_by_element[name]}
                for name, atoms in self.atoms_by_element.items()
            },
            "shared_ids": asdict(self.shared_ids),
        }


def inspect_shards(folder: str | os.PathLike[str], *, blocks: int = 4096) -> ShardStatistics:
    """Reads a manifest and, for atom statistics, blocks spread evenly over the shards.

    Args:
        folder: of the shards, a path or a URL that fsspec supports.
        blocks: maximum number of blocks to read.

    Raises:
        ManifestError: `folder` has no valid manifest.
        ShardError: a block cannot be read.
    """
    folder = os.fspath(folder)
    manifest = Manifest.load(folder)
    sizes: list[NDArray[np.int64]] = []
    atoms = np.zeros(256, dtype=np.int64)
    holding = np.zeros(256, dtype=np.int64)
    bonds = 0
    ids, places = IdCount(), spread_blocks(manifest, blocks)
    for place in places:
        block = read_block(folder, *place)
        ids.add(block["id"])
        offsets = block["atoms"].offsets.to_numpy().astype(np.int64)
        size = np.diff(offsets)
        atom_columns = block["atoms"].flatten().flatten().to_numpy().reshape(-1, len(AtomColumn))
        element = atom_columns[:, AtomColumn.ATOMIC_NUMBER]
        sizes.append(size)
        atoms += np.bincount(element, minlength=256)
        molecule = np.repeat(np.arange(len(size)), size)
        holding += np.bincount(np.unique(molecule * 256 + element) % 256, minlength=256)
        bonds += len(block["bonds"].flatten())
    order = [z for z in np.argsort(-atoms, kind="stable") if atoms[z]]
    names = {int(z): _symbol(int(z)) for z in order}
    return ShardStatistics(
        folder=folder,
        digest=manifest.digest,
        splits=tuple(_size(name, manifest.split(name)) for name in ("train", "val") if manifest.split(name)),
        ledger=manifest.ledger,
        reject_reasons=manifest.reject_reasons,
        conformer_sources=manifest.conformer_sources,
        standardization=manifest.standardization,
        molecules_read=sum(map(len, sizes)),
        atoms_per_molecule=np.sort(np.concatenate(sizes)) if sizes else np.zeros(0, dtype=np.int64),
        bonds=bonds,
        atoms_by_element={names[z]: int(atoms[z]) for z in names},
        molecules_by_element={names[z]: int(holding[z]) for z in names},
        shared_ids=ids.shared(lambda number: read_block(folder, *places[number])["id"]),
    )


def spread_blocks(manifest: Manifest, wanted: int) -> list[tuple[ShardEntry, int]]:
    """Returns at most `wanted` blocks, as (shard, number of the block), spread evenly over the shards."""
    places = [(shard, number) for shard in manifest.shards for number in range(len(shard.blocks))]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(wanted, len(places))).round().astype(int))
    return [places[place] for place in chosen]


def _size(name: str, shards: tuple[ShardEntry, ...]) -> SplitSize:
    return SplitSize(
        split=name,
        shards=len(shards),
        blocks=sum(len(shard.blocks) for shard in shards),
        molecules=sum(shard.molecules for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
    )


def _symbol(atomic_number_index: int) -> str:
    """Returns the symbol of OGB's atomic-number category: hydrogen is 0, the last category is all others."""
    from rdkit import Chem

    if atomic_number_index >= 118:
        return "other"
    return Chem.GetPeriodicTable().GetElementSymbol(atomic_number_index + 1)
