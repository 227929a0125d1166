"""Shards: plain webdataset opens them, byte ranges address them, damage is named."""

from __future__ import annotations

import dataclasses
import io
import re
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from mmsa_shards.atomic import write_atomically
from mmsa_shards.block import Molecule, molecules_to_block
from mmsa_shards.shard import ShardError, check_members, read_block, read_shard, write_shard


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
    list(read_shard(tmp_path, shard))


def test_damage_is_named(tmp_path, shard):
    path = tmp_path / shard.name
    good = path.read_bytes()
    middle = shard.blocks[1].offset + shard.blocks[1].size // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :])
    with pytest.raises(ShardError, match=r"train-00003\.tar"):
        list(read_shard(tmp_path, shard))
    path.write_bytes(good[:middle])
    with pytest.raises(ShardError, match=r"block 1 of .*train-00003\.tar"):
        list(read_shard(tmp_path, shard))
    path.unlink()
    with pytest.raises(ShardError, match=r"block 0 of .*train-00003\.tar"):
        read_block(tmp_path, shard, 0)


def test_the_sound_blocks_beside_a_damaged_one_are_read(tmp_path, shard):
    path = tmp_path / shard.name
    damaged = bytearray(path.read_bytes())
    damaged[shard.blocks[1].offset] ^= 1
    path.write_bytes(damaged)
    faults: list[ShardError] = []
    assert list(read_shard(tmp_path, shard, on_fault=faults.append)) == [BLOCKS[0], BLOCKS[2]]
    assert [re.search("block 1 of .* is damaged", str(fault)) is not None for fault in faults] == [True]
    reading = read_shard(tmp_path, shard)
    assert next(reading) == BLOCKS[0]
    with pytest.raises(ShardError, match="block 1 of"):
        next(reading)


def test_a_shard_that_is_cut_short_is_found_wherever_it_ends(tmp_path, shard):
    path = tmp_path / shard.name
    good = path.read_bytes()
    assert len(good) == shard.bytes
    for length in range(0, len(good), tarfile.BLOCKSIZE):
        path.write_bytes(good[:length])
        with pytest.raises(ShardError, match=r"train-00003\.tar"):
            list(read_shard(tmp_path, shard))
        for number, block in enumerate(shard.blocks):
            if block.offset + block.size > length:
                with pytest.raises(ShardError, match=rf"block {number} of .*train-00003\.tar"):
                    read_block(tmp_path, shard, number)


def test_every_flipped_bit_is_found(tmp_path, shard):
    path = tmp_path / shard.name
    good = path.read_bytes()
    bits = np.random.default_rng(0).choice(8 * len(good), 1000, replace=False)
    within = 0
    for bit in bits.tolist():
        byte = bit // 8
        path.write_bytes(good[:byte] + bytes([good[byte] ^ 1 << bit % 8]) + good[byte + 1 :])
        with pytest.raises(ShardError, match=r"train-00003\.tar"):
            list(read_shard(tmp_path, shard))
        for number, block in enumerate(shard.blocks):
            if block.offset <= byte < block.offset + block.size:
                within += 1
                with pytest.raises(ShardError, match=rf"block {number} of .*train-00003\.tar is damaged"):
                    read_block(tmp_path, shard, number)
    assert within > 400


def _rewrite(tmp_path, shard, change):
    """Writes the shard's members through `change`."""
    members = []
    with tarfile.open(tmp_path / shard.name) as tar:
        for info in tar:
            members.append((info, tar.extractfile(info).read()))
    members = change(members)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if info.isfile() else None)
    (tmp_path / shard.name).write_bytes(data.getvalue())


def _renamed(members, name):
    members[0][0].name = name
    return members


def _made(members, kind):
    extra = tarfile.TarInfo("train-00003-00003.arrow")
    extra.type, extra.linkname = kind, "/etc/passwd"
    return [*members, (extra, b"")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m[:2], "holds 2 blocks, the manifest has 3"),
        (lambda m: [*m, (tarfile.TarInfo("readme"), b"")], "holds 4 blocks, the manifest has 3"),
        (lambda m: [m[1], m[0], m[2]], "holds a member 'train-00003-00001.arrow' where"),
        (lambda m: _renamed(m, "../train-00003-00000.arrow"), "holds a member '../train-00003-00000.arrow' where"),
        (lambda m: _made(m, tarfile.SYMTYPE), "is no plain file"),
        (lambda m: _made(m, tarfile.LNKTYPE), "is no plain file"),
        (lambda m: _made(m, tarfile.CHRTYPE), "is no plain file"),
        (lambda m: _made(m, tarfile.DIRTYPE), "is no plain file"),
    ],
)
def test_the_tar_holds_the_blocks_and_nothing_else(tmp_path, shard, change, words):
    check_members(tmp_path, shard)
    _rewrite(tmp_path, shard, change)
    with pytest.raises(ShardError, match=words):
        check_members(tmp_path, shard)


def test_a_block_that_lies_elsewhere_is_named(tmp_path, shard):
    moved = dataclasses.replace(shard.blocks[0], offset=1024)
    other = dataclasses.replace(shard, blocks=(moved, *shard.blocks[1:]))
    with pytest.raises(ShardError, match=r"member 'train-00003-00000\.arrow' of .* does not lie where"):
        check_members(tmp_path, other)


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
