"""A shard file: a tar of blocks that plain webdataset opens, every block of which is also found by its byte offset."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from mmsa_shards.atomic import write_atomically
from mmsa_shards.block import Compression, decode_block, encode_block
from mmsa_shards.manifest import BlockEntry, ShardEntry, Split
from mmsa_shards.places import locate, opened, reaching
from mmsa_shards.schema import BLOCK_SCHEMA

_MEND = "make this shard again with mmsa prepare --repair"


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
    """Reads one block by its byte range, without looking at the rest of the shard.

    Args:
        folder: of the shards; a path or any URL that fsspec knows.
        shard: from the manifest.
        number: of the block within the shard.

    Raises:
        ShardError: the shard is missing, or the block is not what the manifest says.
    """
    return read_entry(folder, shard.name, number, shard.blocks[number])


def read_entry(
    folder: str | Path, name: str, number: int, entry: BlockEntry, columns: Sequence[str] = BLOCK_SCHEMA.names
) -> pa.RecordBatch:
    """Reads one block as `read_block` does, for callers that do not keep the manifest or do not want all columns.

    Args:
        folder: of the shards; a path or any URL that fsspec knows.
        name: of the shard file.
        number: of the block within the shard, for messages.
        entry: of the block in the manifest.
        columns: to be unpacked, in the order of the schema.

    Raises:
        ShardError: the shard is missing, or the block is not what the manifest says.
    """
    url = _url(folder, name)
    try:
        if "://" in url:
            system, path = locate(url)
            with reaching(url):
                data = bytes(system.cat_file(path, start=entry.offset, end=entry.offset + entry.size))
        else:
            with open(url, "rb") as file:  # noqa: PTH123  (read for every block: fsspec costs more than the read)
                file.seek(entry.offset)
                data = file.read(entry.size)
    except OSError as error:
        raise ShardError(f"cannot read block {number} of {url}: {error}; {_MEND}") from error
    return _checked(data, entry, f"block {number} of {url}", columns)


def read_shard(folder: str | Path, shard: ShardEntry) -> Iterator[pa.RecordBatch | ShardError]:
    """Reads a shard from end to end and checks all there is to check of it.

    Yields:
        Each block, or what is wrong with it; then what is wrong with the rest of the file. A shard that is cut short
        or missing is one error, and so is a damaged block: that the digest of the file differs too is not repeated.
    """
    url = _url(folder, shard.name)
    digest, position, sound = hashlib.sha256(), 0, True
    try:
        with opened(url) as file:
            for number, entry in enumerate(shard.blocks):
                digest.update(file.read(max(0, entry.offset - position)))
                data = file.read(entry.size)
                digest.update(data)
                position = entry.offset + entry.size
                try:
                    yield _checked(data, entry, f"block {number} of {url}")
                except ShardError as error:
                    sound = False
                    yield error
                if len(data) < entry.size:
                    return
            while rest := file.read(1 << 20):
                digest.update(rest)
                position += len(rest)
    except OSError as error:
        yield ShardError(f"cannot read {url}: {error}; {_MEND}")
        return
    if sound and (position, digest.hexdigest()) != (shard.bytes, shard.sha256):
        yield ShardError(f"{url} does not match its size and SHA-256 in the manifest; {_MEND}")
    elif sound:
        try:
            check_members(folder, shard)
        except ShardError as error:
            yield error


def verify_shard(folder: str | Path, shard: ShardEntry) -> None:
    """Checks a shard against the manifest: every block, every byte, and the tar as other programs see it.

    Raises:
        ShardError: names the shard, and the block where only one is broken.
    """
    for found in read_shard(folder, shard):
        if isinstance(found, ShardError):
            raise found


def check_members(folder: str | Path, shard: ShardEntry) -> None:
    """Checks that the shard is a tar whose members are the blocks of the manifest, in order, and nothing else.

    Plain files under the names that `write_shard` gives can neither lead out of a folder nor be links or devices.

    Raises:
        ShardError: names the shard and the member.
    """
    url = _url(folder, shard.name)
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
    """Whether the shard is there and its bytes are those of the manifest."""
    digest, size = hashlib.sha256(), 0
    try:
        with opened(_url(folder, shard.name)) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
    except FileNotFoundError:
        return False
    return (size, digest.hexdigest()) == (shard.bytes, shard.sha256)


def _checked(data: bytes, entry: BlockEntry, place: str, columns: Sequence[str] = BLOCK_SCHEMA.names) -> pa.RecordBatch:
    """Decodes a block that is what the manifest says; `place` names it in errors."""
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


def _url(folder: str | Path, name: str) -> str:
    return f"{str(folder).rstrip('/')}/{name}"
