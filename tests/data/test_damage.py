"""Blocks that are not what the manifest says: named when they are read, by a loader and its processes alike."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mmsa_dist.data.loader import BlockReader, Loader, LoaderOptions
from mmsa_shards.manifest import Manifest
from mmsa_shards.shard import ShardError

OPTIONS = LoaderOptions(seed=0, batch_size=8, accumulate=1, lanes=4, window_blocks=2, picture_size=None, augment=False)
NAME = "train-00001.tar"


def one_epoch(reader: BlockReader, *, workers: int = 0) -> None:
    for _ in itertools.islice(Loader(reader, OPTIONS, workers=workers), 5):
        pass


def flip_one_bit(shards: Path, number: int) -> None:
    shard = next(shard for shard in Manifest.load(shards).shards if shard.name == NAME)
    data = bytearray((shards / NAME).read_bytes())
    data[shard.blocks[number].offset + shard.blocks[number].size // 2] ^= 0x10
    (shards / NAME).write_bytes(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_one_bit_that_changed_is_named_with_shard_block_and_mend(tiny_shards: Path, workers: int) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    flip_one_bit(tiny_shards, 3)
    with pytest.raises(ShardError, match=rf"block 3 of .*/{NAME} is damaged: its CRC-32.*mmsa prepare --repair"):
        one_epoch(reader, workers=workers)


def test_other_blocks_of_the_shard_are_read(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    flip_one_bit(tiny_shards, 3)
    for block in range(len(reader)):
        if block == 5 + 3:  # the first shard holds five
            with pytest.raises(ShardError):
                reader.read(block)
        else:
            assert len(reader.read(block)) == 4


def test_a_shard_cut_short_is_named_at_the_first_block_that_lacks(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    data = (tiny_shards / NAME).read_bytes()
    (tiny_shards / NAME).write_bytes(data[: len(data) // 2])
    with pytest.raises(ShardError, match=rf"block \d of .*/{NAME} ends after \d+ of its \d+ bytes.*--repair"):
        one_epoch(reader)


def test_a_missing_shard_is_named(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    (tiny_shards / NAME).unlink()
    with pytest.raises(ShardError, match=rf"cannot read block \d of .*/{NAME}: .*No such file.*--repair"):
        one_epoch(reader)


def test_a_shard_exchanged_for_another_is_noticed(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    (tiny_shards / NAME).write_bytes((tiny_shards / "train-00000.tar").read_bytes())
    with pytest.raises(ShardError, match=rf"block \d of .*/{NAME}"):
        one_epoch(reader)
