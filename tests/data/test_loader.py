"""Batches for ranks: the same global batches however many ranks, workers and resumes there are."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.loader import BlockReader, Loader, LoaderOptions, validation_batches
from mmsa_dist.data.order import LoaderState

OPTIONS = LoaderOptions(seed=0, batch_size=8, accumulate=1, lanes=4, window_blocks=2, picture_size=None, augment=True)


def take(loader: Loader, batches: int) -> list[MoleculeBatch]:
    return list(itertools.islice(loader, batches))


def ids(batch: MoleculeBatch) -> list[int]:
    return batch.index_B.tolist()


def test_an_epoch_shows_every_molecule_at_most_once_and_leaves_one_partial_batch(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    loader = Loader(reader, OPTIONS)
    assert (reader.molecules, loader.steps_per_epoch) == (44, 5)
    seen = [i for batch in take(loader, 5) for i in ids(batch)]
    assert len(set(seen)) == len(seen) == 40
    assert loader.state == LoaderState(epoch=1, step=0)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(tiny_shards: Path, world: int) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    whole = [set(ids(batch)) for batch in take(Loader(reader, OPTIONS), 12)]
    per_rank = [take(Loader(reader, OPTIONS, rank=r, world=world), 12) for r in range(world)]
    assert [set().union(*(ids(b) for b in parts)) for parts in zip(*per_rank, strict=True)] == whole
    assert all(len(batch) == 8 // world for batches in per_rank for batch in batches)


@pytest.mark.parametrize("world", [1, 2])
def test_a_resumed_loader_gives_the_same_tensors(tiny_shards: Path, world: int) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    options = LoaderOptions(**{**vars(OPTIONS), "picture_size": 32})
    undisturbed = take(Loader(reader, options, rank=0, world=world), 13)
    for stop in (1, 5, 7):
        loader = Loader(reader, options, rank=0, world=world)
        take(loader, stop)
        resumed = take(Loader(reader, options, rank=0, world=world, state=loader.state), 13 - stop)
        for a, b in zip(undisturbed[stop:], resumed, strict=True):
            for name in vars(a):
                torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True)


def test_loader_processes_change_nothing(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    assert [ids(b) for b in take(Loader(reader, OPTIONS, workers=2), 7)] == [
        ids(b) for b in take(Loader(reader, OPTIONS), 7)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_generator_of_dropout_is_left_alone(tiny_shards: Path, workers: int) -> None:
    before = torch.get_rng_state()
    next(Loader(BlockReader(str(tiny_shards), "train"), OPTIONS, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_micro_batches_make_up_the_global_batch(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    halves = LoaderOptions(**{**vars(OPTIONS), "accumulate": 2})
    loader = Loader(reader, halves)
    micro = take(loader, 4)
    assert loader.state == LoaderState(epoch=0, step=2)
    whole = take(Loader(reader, OPTIONS), 2)
    assert [sorted(ids(a) + ids(b)) for a, b in zip(micro[::2], micro[1::2], strict=True)] == [
        sorted(ids(b)) for b in whole
    ]


def test_index_is_the_place_in_the_manifest(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    columns = reader.read(5)
    assert columns.index.tolist() == [20, 21, 22, 23]


def test_molecules_without_3d_are_masked(tiny_shards: Path) -> None:
    batches = take(Loader(BlockReader(str(tiny_shards), "train"), OPTIONS), 5)
    lacking = [int((~batch.has_xyz_B).sum()) for batch in batches]
    assert sum(lacking) > 0
    for batch in batches:
        assert torch.equal(torch.isnan(batch.xyz_A3[:, 0]), ~batch.has_xyz_B[batch.molecule_of_atom_A])


def test_validation_takes_full_batches_in_manifest_order(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "val")
    assert reader.molecules == 11
    batches = list(validation_batches(reader, batch_size=5, picture_size=None))
    assert [ids(b) for b in batches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [len(b) for b in validation_batches(reader, batch_size=50, picture_size=None)] == [11]


def test_what_does_not_fit_is_refused_with_the_mend(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    with pytest.raises(ValueError, match=r"data\.lanes=4 must be a multiple of the number of ranks, 3"):
        Loader(reader, OPTIONS, rank=0, world=3)
    with pytest.raises(ValueError, match=r"44 training molecules do not fill one batch of data\.batch_size=64"):
        Loader(reader, LoaderOptions(**{**vars(OPTIONS), "batch_size": 64}))


@pytest.mark.parametrize("world", [1, 3])
def test_validation_of_some_molecules_reads_only_their_blocks(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    reader, blocks = BlockReader(str(tiny_shards), "train"), []
    read = BlockReader.read
    monkeypatch.setattr(BlockReader, "read", lambda self, block: blocks.append(block) or read(self, block))
    options = {"batch_size": 5, "picture_size": None, "molecules": 17}
    of_ranks = [validation_batches(reader, **options, rank=rank, world=world) for rank in range(world)]
    batches = sorted((ids(batch) for of_rank in of_ranks for batch in of_rank), key=min)
    assert batches == [[0, 1, 2, 3, 4], [14, 15, 16, 17, 18], [28, 29, 30, 31, 32]]  # three of 44, 14 apart
    assert len(blocks) == sum(len({int(reader.sizes.at(i)) for i in batch}) for batch in batches)


def test_a_position_beyond_the_epoch_is_refused(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    with pytest.raises(ValueError, match=r"cannot start at step 5 of an epoch of 5"):
        Loader(reader, OPTIONS, state=LoaderState(epoch=0, step=5))
