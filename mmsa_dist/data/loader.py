"""Batches for one rank, starting at any step of any epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmsa_dist.data.augment import random_conformer, random_pose
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.collate import collate
from mmsa_dist.data.columns import MoleculeColumns, from_block, join
from mmsa_dist.data.order import EpochOrder, LoaderState
from mmsa_dist.data.prefetch import Prefetched
from mmsa_dist.data.sizes import BlockSizes
from mmsa_shards.manifest import BlockEntry, Manifest, Split
from mmsa_shards.shard import read_entry

_LOCATION = np.dtype([("offset", np.int64), ("size", np.uint32), ("crc32", np.uint32)])
"""Of a block in its shard, as in `mmsa_shards.manifest.BlockEntry`."""
_SAMPLED_BLOCKS = 64


class BlockReader:
    """Reads the blocks of a manifest split by number.

    Args:
        folder: folder or fsspec URL of the shards.
        split: ``train`` or ``val``.

    Raises:
        mmsa_shards.manifest.ManifestError: the folder has no usable manifest.
        ValueError: the split is empty.
    """

    def __init__(self, folder: str, split: Split) -> None:
        self._folder = folder
        manifest = Manifest.load(folder)
        shards = manifest.split(split)
        blocks_of_shard = [len(shard.blocks) for shard in shards]
        # Arrays instead of the manifest's entries, because every loader process gets a copy.
        self._names = [shard.name for shard in shards]
        self._first_block = np.cumsum([0, *blocks_of_shard])
        self._locations = np.fromiter(
            ((block.offset, block.size, block.crc32) for shard in shards for block in shard.blocks),
            dtype=_LOCATION,
            count=sum(blocks_of_shard),
        )
        self.sizes = BlockSizes.of(
            np.fromiter(
                (block.molecules for shard in shards for block in shard.blocks),
                dtype=np.uint32,
                count=sum(blocks_of_shard),
            )
        )
        if not len(self.sizes):
            raise ValueError(
                f"{folder} holds no {split} molecules; prepare more molecules"
                + (", or raise prepare.val_fraction" if split == "val" else "")
            )
        self.digest = manifest.digest
        self.options = manifest.options
        """Of the preparation, as far as the manifest records them."""
        self.has_conformers = set(manifest.conformer_sources) != {"none"}
        """Whether any molecule of the folder has a conformer, as far as the manifest records it."""

    @property
    def molecules(self) -> int:
        """Number of molecules in the split."""
        return self.sizes.molecules

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, block: int) -> MoleculeColumns:
        """Returns the molecules of a block, numbered as in the manifest split.

        Raises:
            mmsa_shards.shard.ShardError: the block does not match the manifest; names shard, block and remedy.
        """
        return from_block(self._read(block), first_index=int(self.sizes.starts(block)))

    def read_between(self, start: int, stop: int) -> MoleculeColumns:
        """Returns the molecules at positions `start` to `stop` - 1 of the split, at least one; errors as for `read`."""
        first, last = self.sizes.at(np.array([start, stop - 1])).tolist()
        skipped = int(self.sizes.starts(first))
        return join([self.read(block) for block in range(first, last + 1)]).slice(start - skipped, stop - skipped)

    def descriptors_of_some(self) -> Tensor:
        """Returns (n, F) float32: descriptors of up to 64 blocks, evenly spaced over the split; F is 0 without any."""
        sample = np.unique(np.linspace(0, len(self) - 1, _SAMPLED_BLOCKS).astype(np.int64))
        return torch.from_numpy(np.concatenate([self.read(block).descriptors for block in sample.tolist()]))

    def ids(self, index: np.ndarray) -> list[str]:
        """Returns the sources' ids, such as CID2244, of the molecules `index` of the split, in that order."""
        blocks = self.sizes.at(index)
        columns = {b: self._read(b).column("id") for b in np.unique(blocks).tolist()}
        rows = index - self.sizes.starts(blocks)
        return [columns[b][row].as_py() for b, row in zip(blocks.tolist(), rows.tolist(), strict=True)]

    def _read(self, block: int) -> pa.RecordBatch:
        shard = int(np.searchsorted(self._first_block, block, side="right")) - 1
        offset, size, crc32 = self._locations[block].item()
        entry = BlockEntry(offset, size, int(self.sizes.sizes(block)), crc32)
        return read_entry(self._folder, self._names[shard], block - int(self._first_block[shard]), entry)


@dataclass(frozen=True)
class LoaderOptions:
    """What determines the batches, besides the state."""

    seed: int
    batch_size: int
    """Molecules in a global batch, over all ranks and accumulation steps."""
    accumulate: int
    lanes: int
    window_blocks: int
    picture_size: int | None
    augment: bool


class Loader(Iterator[MoleculeBatch]):
    """An endless iterator over the micro-batches of one rank, epoch after epoch.

    `accumulate` consecutive micro-batches are this rank's part of a global batch. `state` is the position of the run:
    it advances when the last micro-batch of a global batch has been taken, however far workers have read ahead.

    Args:
        reader: of the shards.
        options: what determines the batches.
        rank: of this process.
        world: number of processes.
        workers: processes that make batches; 0 = this one.
        device: of the batches; for CUDA they are pinned, and `look_ahead` copies them during a step.
        state: where to start.

    Raises:
        ValueError: more lanes than blocks, lanes not divisible by the ranks, too few molecules for a batch, or a
            state beyond the end of an epoch.
    """

    def __init__(
        self,
        reader: BlockReader,
        options: LoaderOptions,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
        state: LoaderState | None = None,
    ) -> None:
        if options.lanes % world:
            raise ValueError(
                f"data.lanes={options.lanes} must be a multiple of the number of ranks, {world}, so that every rank "
                "serves equally many lanes; change data.lanes or the number of ranks"
            )
        first_epoch = epoch_order(reader, options, epoch=0)
        self.steps_per_epoch = first_epoch.steps(options.batch_size)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{reader.molecules} training molecules do not fill one batch of data.batch_size="
                f"{options.batch_size} over data.lanes={options.lanes}; lower data.batch_size or prepare more molecules"
            )
        self.state = state or LoaderState()
        if self.state.step >= self.steps_per_epoch:
            raise ValueError(
                f"the loader cannot start at step {self.state.step} of an epoch of {self.steps_per_epoch}; that is a "
                "position among other batches"
            )
        self._accumulate = options.accumulate
        self._taken = 0
        batches = DataLoader(
            _MicroBatches(reader, options, rank, world, self.state, self.steps_per_epoch),
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.device(device).type == "cuda",
            # Forked children would inherit locks of gloo, OpenMP and Arrow threads.
            multiprocessing_context="forkserver" if workers else None,
            prefetch_factor=4 if workers else None,
            # Workers draw no random numbers, but torch would seed them from the generator that dropout uses, which
            # would change the first step after every start.
            generator=torch.Generator(),
        )
        self._batches = Prefetched(batches, device)

    def __next__(self) -> MoleculeBatch:
        """Returns the next micro-batch, on the device."""
        batch = next(self._batches)
        self._taken += 1
        if self._taken % self._accumulate == 0:
            self.state = advance(self.state, self.steps_per_epoch)
        return batch

    def look_ahead(self) -> None:
        """Starts fetching the next micro-batch; `state` does not change."""
        self._batches.look_ahead()


def advance(state: LoaderState, steps_per_epoch: int) -> LoaderState:
    """Returns the state one global batch later."""
    step = state.step + 1
    return LoaderState(state.epoch + 1, 0) if step == steps_per_epoch else dataclasses.replace(state, step=step)


def epoch_order(reader: BlockReader, options: LoaderOptions, *, epoch: int) -> EpochOrder:
    """Returns the order of a reader's molecules in one epoch."""
    return EpochOrder(
        reader.sizes,
        seed=options.seed,
        epoch=epoch,
        lanes=options.lanes,
        window_blocks=options.window_blocks,
    )


class _MicroBatches(IterableDataset):
    """The micro-batches from `state` on; worker w of n makes every n-th."""

    def __init__(
        self,
        reader: BlockReader,
        options: LoaderOptions,
        rank: int,
        world: int,
        state: LoaderState,
        steps_per_epoch: int,
    ) -> None:
        self._reader = reader
        self._options = options
        self._lanes = range(rank, options.lanes, world)
        self._state = state
        self._steps_per_epoch = steps_per_epoch

    def __iter__(self) -> Iterator[MoleculeBatch]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        number = 0
        epoch, step = self._state.epoch, self._state.step
        while True:
            lanes = _Lanes(self._reader, epoch_order(self._reader, self._options, epoch=epoch), self._lanes)
            for micro in range(step * self._options.accumulate, self._steps_per_epoch * self._options.accumulate):
                if number % workers == mine:
                    yield self._batch(lanes, epoch, micro)
                number += 1
            epoch, step = epoch + 1, 0

    def _batch(self, lanes: _Lanes, epoch: int, micro: int) -> MoleculeBatch:
        options = self._options
        share = options.batch_size // options.accumulate // options.lanes
        columns = lanes.molecules(micro * share, (micro + 1) * share)
        index = columns.index
        return collate(
            columns,
            picture_size=options.picture_size,
            pose=random_pose(index, seed=options.seed, epoch=epoch) if options.augment else None,
            conformer_choice=random_conformer(index, seed=options.seed, epoch=epoch),
        )


@dataclass(frozen=True)
class _Window:
    """A window of a lane, shuffled."""

    number: int
    begin: int
    """Position of its first molecule in the lane."""
    molecules: MoleculeColumns


class _Lanes:
    """The molecules of this rank's lanes; keeps each lane's current window, read and shuffled once."""

    def __init__(self, reader: BlockReader, order: EpochOrder, lanes: range) -> None:
        self._reader = reader
        self._order = order
        self._lanes = lanes
        self._current: dict[int, _Window] = {}

    def molecules(self, start: int, stop: int) -> MoleculeColumns:
        """Returns the molecules `start:stop` of every lane, lane after lane."""
        return join([part for lane in self._lanes for part in self._of_lane(lane, start, stop)])

    def _of_lane(self, lane: int, start: int, stop: int) -> list[MoleculeColumns]:
        held = self._current.get(lane)
        if held is not None and held.begin <= start and stop <= held.begin + len(held.molecules):
            # The usual case, which does not need the order.
            return [held.molecules.slice(start - held.begin, stop - held.begin)]
        parts = []
        for piece in self._order.pieces(lane, start, stop):
            parts.append(self._window(lane, piece.window, start - piece.start).slice(piece.start, piece.stop))
            start += piece.stop - piece.start
        return parts

    def _window(self, lane: int, window: int, begin: int) -> MoleculeColumns:
        """Returns the molecules of a window, which begins at molecule `begin` of its lane."""
        held = self._current.get(lane)
        if held is None or held.number != window:
            blocks, rows = self._order.window(lane, window)
            distinct, which = np.unique(blocks, return_inverse=True)
            whole = join([self._reader.read(int(block)) for block in distinct])
            sizes = self._reader.sizes.sizes(distinct)
            first_row = np.cumsum(sizes) - sizes
            held = self._current[lane] = _Window(window, begin, whole.take(first_row[which] + rows))
        return held.molecules


def validation_batches(
    reader: BlockReader,
    *,
    batch_size: int,
    picture_size: int | None,
    molecules: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[MoleculeBatch]:
    """Yields batches evenly spaced over a split, without augmentation; each rank takes every `world`-th.

    All batches are full, so that retrieval within a batch has the same chance level in each; a split smaller than
    `batch_size` is one batch. Only the blocks of this rank's batches are read, one batch at a time.

    Args:
        reader: of the split.
        batch_size: molecules of a batch, consecutive in the split.
        picture_size: side of the pictures in pixels; None draws none.
        molecules: how many to take in all, about; None takes as many as fill batches.
        rank: of this process.
        world: number of processes.
    """
    there = reader.molecules
    size = min(batch_size, there)
    batches = max(1, min(molecules or there, there) // size)
    for number in range(rank, batches, world):
        start = number * (there // batches)
        yield collate(reader.read_between(start, start + size), picture_size=picture_size)
