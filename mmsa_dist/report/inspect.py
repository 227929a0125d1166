"""What a folder of shards holds: counts and sizes as text, and a sheet of molecules as the model sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmsa_shards.manifest import Ledger, Manifest, ShardEntry
from mmsa_shards.shard import read_block

if TYPE_CHECKING:
    from rich.console import Group

_ELEMENTS_SHOWN = 12


@dataclass(frozen=True)
class SplitSize:
    """How large a split is."""

    split: str
    shards: int
    blocks: int
    molecules: int
    bytes: int


@dataclass(frozen=True)
class ShardStatistics:
    """What `inspect_shards` found."""

    folder: str
    digest: str
    splits: tuple[SplitSize, ...]
    ledger: Ledger
    reject_reasons: dict[str, int]
    conformer_sources: dict[str, int]
    molecules_read: int
    """Molecules on which the figures below rest."""
    atoms_per_molecule: NDArray[np.int64]
    """(molecules_read,) heavy atoms, ascending."""
    bonds: int
    atoms_by_element: dict[str, int]
    """Atoms of each element, the most frequent first."""
    molecules_by_element: dict[str, int]
    """Molecules that hold an element."""

    @property
    def molecules(self) -> int:
        """Molecules in all splits."""
        return sum(split.molecules for split in self.splits)

    @property
    def bytes_per_molecule(self) -> float:
        """Bytes on disk, over all splits; NaN where there is no molecule."""
        return sum(split.bytes for split in self.splits) / self.molecules if self.molecules else float("nan")


def inspect_shards(folder: str | os.PathLike[str], *, blocks: int = 4096) -> ShardStatistics:
    """Reads a manifest and, for the statistics of atoms, blocks spread evenly over the shards.

    Args:
        folder: of the shards; a path or a URL that fsspec knows.
        blocks: at most so many are read.

    Raises:
        ManifestError: there is no good manifest.
        ShardError: a block cannot be read.
    """
    folder = os.fspath(folder)
    manifest = Manifest.load(folder)
    sizes: list[NDArray[np.int64]] = []
    atoms = np.zeros(256, dtype=np.int64)
    holding = np.zeros(256, dtype=np.int64)
    bonds = 0
    for block in _spread(folder, manifest, blocks):
        offsets = block["atoms"].offsets.to_numpy().astype(np.int64)
        size = np.diff(offsets)
        element = block["atoms"].flatten().flatten().to_numpy().reshape(-1, 9)[:, 0]
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
        molecules_read=sum(map(len, sizes)),
        atoms_per_molecule=np.sort(np.concatenate(sizes)) if sizes else np.zeros(0, dtype=np.int64),
        bonds=bonds,
        atoms_by_element={names[z]: int(atoms[z]) for z in names},
        molecules_by_element={names[z]: int(holding[z]) for z in names},
    )


def render_inspection(statistics: ShardStatistics) -> Group:
    """The statistics as tables for a terminal; ``rich.console.Console().print`` shows them."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for number, column in enumerate(columns):
            made.add_column(column, justify="left" if number == 0 else "right", header_style="dim")
        return made

    s = statistics
    splits = table("Shards", "split", "shards", "blocks", "molecules", "MB", "bytes/molecule")
    for split in s.splits:
        each = split.bytes / split.molecules if split.molecules else float("nan")
        splits.add_row(
            split.split,
            f"{split.shards:,}",
            f"{split.blocks:,}",
            f"{split.molecules:,}",
            f"{split.bytes / 1e6:,.1f}",
            f"{each:,.0f}",
        )
    ledger = table("Ledger", "records", "")
    for name in ("read", "written", "duplicates", "rejected", "excluded"):
        ledger.add_row(name, f"{getattr(s.ledger, name):,}")
    parts: list[Table | Text] = [Text(f"{s.folder}  (manifest {s.digest[:12]})"), splits, ledger]
    if s.reject_reasons:
        reasons = table("Why records were rejected", "reason", "records")
        for reason, count in _falling(s.reject_reasons):
            reasons.add_row(Text(reason), f"{count:,}")
        parts.append(reasons)
    sources = table("Conformers", "from", "molecules", "share")
    for source, count in _falling(s.conformer_sources):
        sources.add_row(source, f"{count:,}", _percent(count, s.molecules))
    parts.append(sources)
    if s.molecules_read:
        n = s.atoms_per_molecule
        quantiles = np.quantile(n, (0, 0.05, 0.5, 0.95, 1)).astype(int)
        atoms = table(
            f"Heavy atoms of {s.molecules_read:,} molecules", *["mean", "least", "5%", "median", "95%", "most"], "bonds"
        )
        atoms.add_row(f"{n.mean():.1f}", *(f"{q:,}" for q in quantiles), f"{s.bonds / len(n):.1f}")
        elements = table("Elements", "element", "atoms", "share", "in molecules")
        for name, count in list(s.atoms_by_element.items())[:_ELEMENTS_SHOWN]:
            share = _percent(count, int(n.sum()))
            elements.add_row(name, f"{count:,}", share, _percent(s.molecules_by_element[name], s.molecules_read))
        rare = list(s.atoms_by_element)[_ELEMENTS_SHOWN:]
        if rare:
            elements.add_row(f"{len(rare)} more", f"{sum(s.atoms_by_element[name] for name in rare):,}", "", "")
        parts += [atoms, elements]
    return Group(*(piece for part in parts for piece in (part, Text())))


def contact_sheet(folder: str | os.PathLike[str], path: str | os.PathLike[str], molecules: int = 24) -> None:
    """Draws a PNG of molecules as the image encoder sees them, spread evenly over the shards.

    Args:
        folder: of the shards.
        path: of the PNG.
        molecules: how many; fewer where the shards hold fewer.

    Raises:
        ManifestError: there is no good manifest.
        ValueError: the shards are empty.
    """
    from PIL import Image, ImageDraw, ImageFont

    from mmsa_dist.data.collate import block_to_batch

    blocks = list(_spread(os.fspath(folder), Manifest.load(os.fspath(folder)), molecules))
    if not blocks:
        raise ValueError(f"{os.fspath(folder)} holds no molecules; there is nothing to draw")
    share = -(-molecules // len(blocks))
    some = pa.Table.from_batches([block.slice(0, share) for block in blocks]).slice(0, molecules)
    picked = some.combine_chunks().to_batches()[0]
    batch = block_to_batch(picked, picture_size=224)
    assert batch.picture_B3HW is not None
    pictures = batch.picture_B3HW.permute(0, 2, 3, 1).numpy()
    columns = min(6, len(pictures))
    rows = -(-len(pictures) // columns)
    gap, caption = 12, 22
    cell_w, cell_h = 224 + gap, 224 + caption + gap
    sheet = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (picture, name) in enumerate(zip(pictures, picked["id"].to_pylist(), strict=True)):
        x, y = gap + number % columns * cell_w, gap + number // columns * cell_h
        sheet.paste(Image.fromarray(picture), (x, y))
        draw.rectangle((x - 1, y - 1, x + 224, y + 224), outline="#e3e8ea")
        draw.text((x + 2, y + 228), name[:34], fill="#6b7780", font=font)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    sheet.save(temporary, format="PNG")
    temporary.replace(path)


def _spread(folder: str, manifest: Manifest, wanted: int) -> Iterator[pa.RecordBatch]:
    """At most `wanted` blocks, spread evenly."""
    places = [(shard, number) for shard in manifest.shards for number in range(len(shard.blocks))]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(wanted, len(places))).round().astype(int))
    for place in chosen:
        yield read_block(folder, *places[place])


def _size(name: str, shards: tuple[ShardEntry, ...]) -> SplitSize:
    return SplitSize(
        split=name,
        shards=len(shards),
        blocks=sum(len(shard.blocks) for shard in shards),
        molecules=sum(shard.molecules for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
    )


def _symbol(atomic_number_index: int) -> str:
    """Element of OGB's atomic-number category, which counts from hydrogen = 0; its last stands for all others."""
    from rdkit import Chem

    if atomic_number_index >= 118:
        return "other"
    return Chem.GetPeriodicTable().GetElementSymbol(atomic_number_index + 1)


def _falling(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else "–"
