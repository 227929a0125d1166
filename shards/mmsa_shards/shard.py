"""A shard file: a tar of blocks that plain webdataset opens, every block of which is also found by its byte offset."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pyarrow as pa

from mmsa_shards.atomic import write_atomically
from mmsa_shards.block import Compression, decode_block, encode_block
from mmsa_shards.manifest import BlockEntry, ShardEntry, Split


class ShardError(ValueError):
    """One sentence: which shard and block, what is wrong, what to do."""


def write_shard(
    folder: Path, name: str, split: Split, blocks: Iterable[pa.RecordBatch], compression: Compression
) -> ShardEntry:
    """Writes ``{name}`` (``train-00017.tar``) into `folder` with a member ``{stem}-{block}.arrow`` for every block.

    Equal blocks give equal bytes: members are in order, without time or owner. The file appears under its
    name only when it is whole and on disk.
    """
    entries: list[BlockEntry] = []
    digest, position = hashlib.sha256(), 0
    with write_atomically(folder / name) as file:
        for number, block in enumerate(blocks):
            data = encode_block(block, compression)
            info = tarfile.TarInfo(f"{Path(name).stem}-{number:05d}.arrow")
            info.size = len(data)  # mtime, uid and gid of a fresh TarInfo are 0, its owner's names empty
            header = info.tobuf(tarfile.USTAR_FORMAT)
            entries.append(BlockEntry(position + len(header), len(data), block.num_rows))
            member = header + data + bytes(-len(data) % tarfile.BLOCKSIZE)
            position += len(member)
            digest.update(member)
            file.write(member)
        end = bytes(2 * tarfile.BLOCKSIZE)
        digest.update(end)
        file.write(end)
    return ShardEntry(
        name=name,
        split=split,
        molecules=sum(entry.molecules for entry in entries),
        sha256=digest.hexdigest(),
        bytes=position + len(end),
        blocks=tuple(entries),
    )


def read_block(folder: str | Path, shard: ShardEntry, number: int) -> pa.RecordBatch:
    """Reads one block by its byte range, without looking at the rest of the shard.

    Args:
        folder: of the shards; a path or any URL that fsspec knows.
        shard: from the manifest.
        number: of the block within the shard.

    Raises:
        ShardError: the shard is missing, or the block is not what the manifest says.
    """
    entry = shard.blocks[number]
    url = _url(folder, shard)
    try:
        if "://" in url:
            system, path = fsspec.core.url_to_fs(url)
            data = system.cat_file(path, start=entry.offset, end=entry.offset + entry.size)
        else:
            with open(url, "rb") as file:  # noqa: PTH123  (read for every block: fsspec costs more than the read)
                file.seek(entry.offset)
                data = file.read(entry.size)
        block = decode_block(data)
    except (OSError, ValueError) as error:
        raise ShardError(f"cannot read block {number} of {url}: {error}; prepare this shard again") from error
    if block.num_rows != entry.molecules:
        raise ShardError(
            f"block {number} of {url} holds {block.num_rows} molecules, the manifest says {entry.molecules}; "
            "prepare this shard again"
        )
    return block


def verify_shard(folder: str | Path, shard: ShardEntry) -> None:
    """Checks the bytes of a shard against the manifest, and every block for being readable.

    Raises:
        ShardError: names the shard, and the block where only one is broken.
    """
    for number in range(len(shard.blocks)):
        read_block(folder, shard, number)
    if not is_intact(folder, shard):
        raise ShardError(
            f"{_url(folder, shard)} does not match its size and SHA-256 in the manifest; prepare this shard again"
        )


def is_intact(folder: str | Path, shard: ShardEntry) -> bool:
    """Whether the shard is there and its bytes are those of the manifest."""
    digest, size = hashlib.sha256(), 0
    try:
        with fsspec.open(_url(folder, shard), "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
    except FileNotFoundError:
        return False
    return (size, digest.hexdigest()) == (shard.bytes, shard.sha256)


def _url(folder: str | Path, shard: ShardEntry) -> str:
    return f"{str(folder).rstrip('/')}/{shard.name}"
