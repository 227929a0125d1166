"""Whether a folder of shards is what its manifest says: every fault there is, not only the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from mmsa_shards.manifest import Manifest, ManifestError, ShardEntry
from mmsa_shards.rejects import REJECTS_NAME, read_rejects
from mmsa_shards.shard import ShardError, read_shard

_AGAIN = "prepare the folder again"


@dataclass(frozen=True)
class Verification:
    """What `verify_folder` found."""

    faults: tuple[str, ...]
    """One sentence each: what is broken, where, and the mend. Empty where all is well."""
    shards: int
    molecules: int
    bytes: int
    """Of all shards of the manifest."""


def verify_folder(folder: str | Path, *, progress: Callable[[int, int | None], None] | None = None) -> Verification:
    """Reads all of a folder of shards and checks it against its manifest.

    Checked are every byte and block of every shard (`mmsa_shards.shard.read_shard`), that no InChIKey stands twice in
    a shard (across shards none can: a shard is an interval of a hash of it), the totals, the ledger, its refused
    records, and that there is no shard that the manifest does not know.

    Args:
        folder: a path, or a URL that fsspec knows.
        progress: told the molecules read and their total.
    """
    try:
        manifest = Manifest.load(folder)
    except ManifestError as error:
        return Verification((str(error),), 0, 0, 0)
    total = sum(shard.molecules for shard in manifest.shards)
    faults: list[str] = []
    sources = Counter[str]()
    done = 0
    for shard in manifest.shards:
        for found in _shard_faults(folder, shard, sources):
            if isinstance(found, str):
                faults.append(found)
            elif progress is not None:
                progress(done + found, total)
        done += shard.molecules
    if not faults and sources != Counter(manifest.conformer_sources):
        faults.append(
            f"the blocks of {folder} name the conformer sources {dict(sources)}, the manifest "
            f"{manifest.conformer_sources}; {_AGAIN}"
        )
    faults += _ledger_faults(folder, manifest, total)
    faults += _strays(folder, manifest)
    return Verification(tuple(faults), len(manifest.shards), total, sum(shard.bytes for shard in manifest.shards))


def size_faults(folder: str | Path) -> tuple[str, ...]:
    """A sentence for each shard that is missing or has another size than its manifest says, from one listing.

    This takes a moment whatever the shards hold, and finds what was cut short; what was changed in place only
    `verify_folder` finds, or `mmsa_shards.shard.read_block` when it comes to the block.

    Raises:
        ManifestError: no usable manifest there.
    """
    manifest = Manifest.load(folder)
    system, path = fsspec.core.url_to_fs(str(folder))
    sizes = {Path(entry["name"]).name: entry["size"] for entry in system.ls(path, detail=True)}
    return tuple(
        f"{folder}/{shard.name} "
        + ("is missing" if shard.name not in sizes else f"has {sizes[shard.name]:,} bytes instead of {shard.bytes:,}")
        + "; make this shard again with mmsa prepare --repair"
        for shard in manifest.shards
        if sizes.get(shard.name) != shard.bytes
    )


def _shard_faults(folder: str | Path, shard: ShardEntry, sources: Counter[str]) -> Iterator[str | int]:
    """Faults of a shard, and between them how many of its molecules were read; adds up conformer sources."""
    keys: list[pa.Array] = []
    for found in read_shard(folder, shard):
        if isinstance(found, ShardError):
            yield str(found)
        else:
            keys.append(found["inchikey"])
            sources.update(found["conformer_source"].to_pylist())
            yield sum(map(len, keys))
    counts = pc.value_counts(pa.chunked_array(keys, pa.string()))
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if twice:
        more = f"{len(twice)} InChIKeys, one of them {twice[0]}," if len(twice) > 1 else f"InChIKey {twice[0]}"
        yield f"{more} stand{'' if len(twice) > 1 else 's'} more than once in {folder}/{shard.name}; {_AGAIN}"
    in_blocks = sum(block.molecules for block in shard.blocks)
    if in_blocks != shard.molecules:
        yield (
            f"the manifest of {folder} gives {shard.name} {shard.molecules} molecules, its blocks {in_blocks}; {_AGAIN}"
        )


def _ledger_faults(folder: str | Path, manifest: Manifest, molecules: int) -> Iterator[str]:
    ledger = manifest.ledger
    if not ledger.balances:
        yield f"the ledger of {folder} does not balance: {ledger}; {_AGAIN}"
    if ledger.written != molecules:
        yield f"the ledger of {folder} has {ledger.written} molecules written, the shards hold {molecules}; {_AGAIN}"
    try:
        reasons = Counter(read_rejects(folder)["reason"].to_pylist())
    except FileNotFoundError:
        reasons = Counter[str]()  # as good as empty; refused records that should be there are missed below
    except (OSError, ValueError, pa.ArrowException) as error:
        yield f"cannot read {folder}/{REJECTS_NAME}: {error}; {_AGAIN}"
        return
    if reasons != Counter(manifest.reject_reasons) or reasons.total() != ledger.rejected:
        yield (
            f"{folder}/{REJECTS_NAME} lists {reasons.total()} refused records ({dict(reasons)}), the ledger has "
            f"{ledger.rejected} ({manifest.reject_reasons}); {_AGAIN}"
        )


def _strays(folder: str | Path, manifest: Manifest) -> Iterator[str]:
    """Files that look like shards, or like the beginning of one, and are none of the manifest."""
    system, path = fsspec.core.url_to_fs(str(folder))
    known = {shard.name for shard in manifest.shards}
    for name in sorted(Path(entry).name for entry in system.ls(path, detail=False)):
        if name.endswith((".tar", ".tmp")) and name not in known:
            yield f"{folder}/{name} is not in the manifest; delete it"
