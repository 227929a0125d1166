"""Shards: plain webdataset opens them, byte ranges address them, damage is named."""

from __future__ import annotations

import tarfile

import numpy as np
import pyarrow as pa
import pytest

from mmsa_shards.atomic import write_atomically
from mmsa_shards.block import Molecule, molecules_to_block
from mmsa_shards.shard import ShardError, read_block, verify_shard, write_shard


def _block(first: int, size: int) -> pa.RecordBatch:
    return molecules_to_block(
        [
            Molecule(
                id=f"m{number}",
                inchikey=f"KEY{number}",
                smiles="CO",
                atoms=np.full((2, 9), number % 5, np.uint8),
                bonds=np.zeros((1, 4), np.uint8),
                bond_ends=np.array([[0, 1]], np.uint16),
                xy=np.zeros((2, 2), np.float32),
                conformers=np.empty((0, 2, 3), np.float32),
                conformer_source="none",
            )
            for number in range(first, first + size)
        ]
    )


BLOCKS = [_block(0, 4), _block(4, 4), _block(8, 1)]


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path, "train-00003.tar", "train", BLOCKS, "zstd")


def test_every_block_is_found_by_its_byte_range(tmp_path, shard):
    assert shard.molecules == 9
    for number, block in enumerate(BLOCKS):
        assert read_block(tmp_path, shard, number).equals(block)
        assert read_block(f"file://{tmp_path}", shard, number).equals(block)


def test_plain_webdataset_opens_it(tmp_path, shard):
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(tmp_path / shard.name), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"train-00003-{n:05d}" for n in range(3)]
    for sample, block in zip(samples, BLOCKS, strict=True):
        assert pa.ipc.open_stream(sample["arrow"]).read_next_batch().equals(block)


def test_the_tar_names_no_time_and_no_owner(tmp_path, shard):
    with tarfile.open(tmp_path / shard.name) as tar:
        for member, entry in zip(tar.getmembers(), shard.blocks, strict=True):
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert (member.offset_data, member.size) == (entry.offset, entry.size)


def test_same_blocks_same_bytes(tmp_path, shard):
    first = (tmp_path / shard.name).read_bytes()
    again = write_shard(tmp_path, shard.name, "train", BLOCKS, "zstd")
    assert again == shard
    assert (tmp_path / shard.name).read_bytes() == first
    verify_shard(tmp_path, shard)


def test_damage_is_named(tmp_path, shard):
    path = tmp_path / shard.name
    good = path.read_bytes()
    middle = shard.blocks[1].offset + shard.blocks[1].size // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :])
    with pytest.raises(ShardError, match=r"train-00003\.tar"):
        verify_shard(tmp_path, shard)
    path.write_bytes(good[:middle])
    with pytest.raises(ShardError, match=r"block 1 of .*train-00003\.tar"):
        verify_shard(tmp_path, shard)
    path.unlink()
    with pytest.raises(ShardError, match=r"block 0 of .*train-00003\.tar"):
        read_block(tmp_path, shard, 0)


def test_every_flipped_bit_is_found(tmp_path, shard):
    path = tmp_path / shard.name
    good = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(good), 200):
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with pytest.raises(ShardError):
            verify_shard(tmp_path, shard)


def test_nothing_half_written_takes_the_name(tmp_path):
    def broken():
        yield BLOCKS[0]
        raise RuntimeError("killed in the middle")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path, "train-00000.tar", "train", broken(), "zstd")
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_write_replaces_as_a_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with write_atomically(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    with write_atomically(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
