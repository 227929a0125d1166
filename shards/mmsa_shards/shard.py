"""A shard file: a tar of blocks that plain webdataset reads, and whose blocks can be read by their byte offsets too."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from mmsa_shards.atomic import write_atomically
from mmsa_shards.block import Compression, decode_block, encode_block
from mmsa_shards.manifest import BlockEntry, ShardEntry, Split
from mmsa_shards.places import file_in, locate, opened, reaching, sha256_of
from mmsa_shards.schema import BLOCK_SCHEMA

_MEND = "make this shard again with mmsa prepare --repair"


class ShardError(ValueError):
    """One sentence: which shard and block is wrong, in what way, and what to do about it."""


def write_shard(
    folder: Path, name: str, split: Split, blocks: Iterable[pa.RecordBatch], compression: Compression
) -> ShardEntry:
    """Writes a shard into a folder, with a member ``{stem}-{number}.arrow`` for every block.

    Equal blocks give equal bytes: members are in order and carry no time and no owner. The file appears under its
    name only when it is complete and on disk.

    Args:
        folder: on a local file system.
        name: of the file, such as ``train-00017.tar``.
        split: to which its molecules belong.
        blocks: in order.
        compression: of the blocks.

    Returns:
        The entry of the shard for the manifest.
    """
    entries: list[BlockEntry] = []
    digest, position = hashlib.sha256(), 0
    with write_atomically(folder / name) as file:
        for number, block in enumerate(blocks):
            data = encode_block(block, compression)
            info = tarfile.TarInfo(_member(name, number))
            info.size = len(data)  # mtime, uid and gid of a fresh TarInfo are 0, its owner's names empty
            header = info.tobuf(tarfile.USTAR_FORMAT)
            entries.append(BlockEntry(position + len(header), len(data), block.num_rows, zlib.crc32(data)))
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
    """Reads one block by its byte range, without reading the rest of the shard.

    Args:
        folder: of the shards; a path or any URL that fsspec supports.
        shard: from the manifest.
        number: of the block within the shard.

    Raises:
        ShardError: the shard is missing, or the block does not match the manifest.
    """
    return read_entry(folder, shard.name, number, shard.blocks[number])


def read_entry(
    folder: str | Path, name: str, number: int, entry: BlockEntry, columns: Sequence[str] = BLOCK_SCHEMA.names
) -> pa.RecordBatch:
    """Reads one block as `read_block` does, for callers that do not keep the manifest or need only some columns.

    Args:
        folder: of the shards; a path or any URL that fsspec supports.
        name: of the shard file.
        number: of the block within the shard, for messages.
        entry: of the block in the manifest.
        columns: to unpack, in the order of the schema.

    Raises:
        ShardError: the shard is missing, or the block does not match the manifest.
    """
    url = file_in(folder, name)
    try:
        if "://" in url:
            system, path = locate(url)
            with reaching(url):
                data = bytes(system.cat_file(path, start=entry.offset, end=entry.offset + entry.size))
        else:
            with open(url, "rb") as file:  # noqa: PTH123  (for every block: fsspec would cost more than the read)
                file.seek(entry.offset)
                data = file.read(entry.size)
    except OSError as error:
        raise ShardError(f"cannot read block {number} of {url}: {error}; {_MEND}") from error
    return _checked(data, entry, f"block {number} of {url}", columns)


def _raise(fault: ShardError) -> NoReturn:
    raise fault


def read_shard(
    folder: str | Path, shard: ShardEntry, on_fault: Callable[[ShardError], None] = _raise
) -> Iterator[pa.RecordBatch]:
    """Reads a shard from end to end, yields its sound blocks, and checks everything that the manifest says of it.

    A shard that is missing or cut short is one fault, and so is a damaged block: the digest of the file, which then
    differs too, is not reported as well.

    Args:
        folder: of the shards; a path or any URL that fsspec supports.
        shard: from the manifest.
        on_fault: called with each fault, after which reading goes on; by default the first fault is raised.

    Raises:
        ShardError: the first fault, unless `on_fault` takes it. It names the shard, and the block if only one is wrong.
    """
    url = file_in(folder, shard.name)
    digest, position, sound = hashlib.sha256(), 0, True
    try:
        with opened(url) as file:
            for number, entry in enumerate(shard.blocks):
                digest.update(file.read(max(0, entry.offset - position)))
                data = file.read(entry.size)
                digest.update(data)
                position = entry.offset + entry.size
                try:
                    block = _checked(data, entry, f"block {number} of {url}")
                except ShardError as error:
                    sound = False
                    on_fault(error)
                else:
                    yield block
                if len(data) < entry.size:
                    return
            while rest := file.read(1 << 20):
                digest.update(rest)
                position += len(rest)
    except OSError as error:
        on_fault(ShardError(f"cannot read {url}: {error}; {_MEND}"))
        return
    if sound and (position, digest.hexdigest()) != (shard.bytes, shard.sha256):
        on_fault(ShardError(f"{url} does not match its size and SHA-256 in the manifest; {_MEND}"))
    elif sound:
        try:
            check_members(folder, shard)
        except ShardError as error:
            on_fault(error)


def check_members(folder: str | Path, shard: ShardEntry) -> None:
    """Checks that the shard is a tar whose members are exactly the blocks of the manifest, in order.

    A plain file under a name that `write_shard` gives is no link or device, and its path does not leave the folder.

    Raises:
        ShardError: names the shard and the member.
    """
    url = file_in(folder, shard.name)
    wanted = [(_member(shard.name, n), b.offset, b.size) for n, b in enumerate(shard.blocks)]
    found: list[tuple[str, int, int]] = []
    try:
        with opened(url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if not info.isfile():
                    raise ShardError(f"member {info.name!r} of {url} is no plain file; {_MEND}")
                found.append((info.name, info.offset_data, info.size))
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{url} is not a whole tar: {error}; {_MEND}") from error
    for (name, *place), (its_name, *its_place) in zip(wanted, found, strict=False):
        if its_name != name:
            raise ShardError(f"{url} holds a member {its_name!r} where the manifest has {name!r}; {_MEND}")
        if its_place != place:
            raise ShardError(f"member {name!r} of {url} does not lie where the manifest says; {_MEND}")
    if len(found) != len(wanted):
        raise ShardError(f"{url} holds {len(found)} blocks, the manifest has {len(wanted)}; {_MEND}")


def is_intact(folder: str | Path, shard: ShardEntry) -> bool:
    """Whether the shard exists and has the SHA-256 of the manifest."""
    try:
        return sha256_of(file_in(folder, shard.name)) == shard.sha256
    except FileNotFoundError:
        return False


def _checked(data: bytes, entry: BlockEntry, place: str, columns: Sequence[str] = BLOCK_SCHEMA.names) -> pa.RecordBatch:
    """Decodes a block after checking it against the manifest; `place` names it in errors."""
    if len(data) != entry.size:
        raise ShardError(f"{place} ends after {len(data)} of its {entry.size} bytes, the file was cut short; {_MEND}")
    if zlib.crc32(data) != entry.crc32:
        raise ShardError(f"{place} is damaged: its CRC-32 is not that of the manifest; {_MEND}")
    try:
        block = decode_block(data, columns)
    except ValueError as error:
        raise ShardError(f"cannot read {place}: {error}; {_MEND}") from error
    if block.num_rows != entry.molecules:
        raise ShardError(f"{place} holds {block.num_rows} molecules, the manifest says {entry.molecules}; {_MEND}")
    return block


def _member(shard_name: str, number: int) -> str:
    return f"{Path(shard_name).stem}-{number:05d}.arrow"
