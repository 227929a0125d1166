"""Whether a folder of shards is what its manifest says: every fault there is, not only the first."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mmsa_shards.folder import Folder
from mmsa_shards.manifest import JOB_NAME, Manifest, ManifestError, ShardEntry
from mmsa_shards.places import locate, opened, reaching
from mmsa_shards.rejects import REJECTS_NAME, read_rejects
from mmsa_shards.shard import ShardError, read_shard

_AGAIN = "prepare the folder again"
_REPAIR = "make it again with mmsa prepare --repair"

#: What follows where nothing says any more from which files a folder was prepared.
WITHOUT_JOB = (
    "the shards can be used, but nothing can be added to them or repaired: for that, prepare all inputs into another "
    "folder"
)


@dataclass(frozen=True)
class Verification:
    """What `verify_folder` found."""

    faults: tuple[str, ...]
    """One sentence each: what is broken, where, and the mend. Empty where all is well."""
    shards: int
    molecules: int
    bytes: int
    """Of all shards of the manifest."""
    job_faults: tuple[str, ...] = ()
    """Likewise of what the folder was prepared from: the shards can be used, but not added to or repaired."""
    unchecked: str = ""
    """A sentence where a part could not be checked, because an older version prepared the folder; not a fault."""


def verify_folder(folder: str | Path, *, progress: Callable[[int, int | None], None] | None = None) -> Verification:
    """Reads all of a folder of shards and checks it against its manifest.

    Checked are every byte and block of every shard (`mmsa_shards.shard.read_shard`), that no InChIKey stands twice in
    a shard (across shards none can: a shard is an interval of a hash of it), the totals, the ledger, the bytes and
    the number of its refused records, what the folder was prepared from, and that there is no file of these kinds
    that the manifest does not know.

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
    broken = broken_files(folder, manifest)
    of_job = broken.pop(JOB_NAME, "") if manifest.files else _job_of_an_older_folder(folder, manifest)
    faults += [f"{folder}/{name} {what}; {_REPAIR}" for name, what in broken.items()]
    faults += _ledger_faults(folder, manifest, total, readable=not broken)
    faults += _strays(folder, manifest)
    job_faults = (f"{folder}/{JOB_NAME} {of_job}; {WITHOUT_JOB}",) if of_job else ()
    unchecked = (
        f"the manifest of {folder} is older than digests of the files beside the shards: of refused records number "
        f"and reasons were compared, of {JOB_NAME} options and names; adding inputs gives it digests"
    )
    size = sum(shard.bytes for shard in manifest.shards)
    return Verification(
        tuple(faults), len(manifest.shards), total, size, job_faults, "" if manifest.files else unchecked
    )


def size_faults(folder: str | Path) -> tuple[str, ...]:
    """A sentence for each shard that is missing or has another size than its manifest says, from one listing.

    This takes a moment whatever the shards hold, and finds what was cut short; what was changed in place only
    `verify_folder` finds, or `mmsa_shards.shard.read_block` when it comes to the block.

    Raises:
        ManifestError: no usable manifest there.
    """
    manifest = Manifest.load(folder)
    system, path = locate(str(folder))
    with reaching(str(folder)):
        system.invalidate_cache(path)  # of what another process may have changed since, now and after
        sizes = {Path(entry["name"]).name: entry["size"] for entry in system.ls(path, detail=True)}
        system.invalidate_cache(path)
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


def _ledger_faults(folder: str | Path, manifest: Manifest, molecules: int, *, readable: bool) -> Iterator[str]:
    ledger = manifest.ledger
    if not ledger.balances:
        yield f"the ledger of {folder} does not balance: {ledger}; {_AGAIN}"
    if ledger.written != molecules:
        yield f"the ledger of {folder} has {ledger.written} molecules written, the shards hold {molecules}; {_AGAIN}"
    if not readable:
        return
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


def broken_files(folder: str | Path, manifest: Manifest) -> dict[str, str]:
    """What is wrong with the files beside the shards of which the manifest has digests, by their names."""
    broken = {}
    for name, expected in manifest.files.items():
        try:
            with opened(f"{str(folder).rstrip('/')}/{name}") as file:
                digest = hashlib.sha256()
                while piece := file.read(1 << 20):
                    digest.update(piece)
            if digest.hexdigest() != expected:
                broken[name] = "does not match its SHA-256 in the manifest"
        except FileNotFoundError:
            broken[name] = "is missing"
        except OSError as error:
            broken[name] = f"cannot be read ({error})"
    return broken


def _job_of_an_older_folder(folder: str | Path, manifest: Manifest) -> str:
    """What is wrong with a job of which there is no digest, as far as the manifest can tell."""
    content = Folder(str(folder)).read(JOB_NAME)
    if content is None:
        return "is missing"
    try:
        job = json.loads(content)
        theirs = job["options"], job["versions"], {entry["name"] for entry in job["inputs"]}
    except (ValueError, LookupError, TypeError) as error:
        return f"is damaged ({error!r})"
    agrees = theirs == (manifest.options, manifest.versions, set(manifest.inputs))
    return "" if agrees else "does not agree with the manifest about options, versions or inputs"


def _strays(folder: str | Path, manifest: Manifest) -> Iterator[str]:
    """Files that look like shards, refused records, or the beginning of one, and are none of the manifest."""
    known = {shard.name for shard in manifest.shards} | manifest.files.keys()
    for name in Folder(str(folder)).names():
        if name.endswith((".tar", ".tmp")) and name not in known:
            yield f"{folder}/{name} is not in the manifest; delete it"
    rejects = REJECTS_NAME.partition("/")[0]
    for name in Folder(f"{folder}/{rejects}").names() if manifest.files else ():
        if f"{rejects}/{name}" == REJECTS_NAME and REJECTS_NAME not in known:
            yield f"{folder}/{REJECTS_NAME} has no SHA-256 in the manifest; keep it, adding inputs gives it one"
        elif f"{rejects}/{name}" not in known:
            yield f"{folder}/{rejects}/{name} is not in the manifest; delete it"
