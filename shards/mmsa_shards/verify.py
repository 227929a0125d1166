"""Checks a folder of shards against its manifest and reports every fault, not only the first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mmsa_shards.folder import Folder
from mmsa_shards.manifest import JOB_NAME, Manifest, ManifestError, ShardEntry
from mmsa_shards.places import file_in, locate, reaching, sha256_of
from mmsa_shards.rejects import REJECTS_NAME, read_rejects
from mmsa_shards.shard import read_shard

_AGAIN = "prepare the folder again"
_REPAIR = "make it again with mmsa prepare --repair"

#: Ends the message about a folder that no longer records from which files it was prepared.
WITHOUT_JOB = (
    "the shards can be used, but nothing can be added to them or repaired: for that, prepare all inputs into another "
    "folder"
)


@dataclass(frozen=True)
class Verification:
    """What `verify_folder` found."""

    faults: tuple[str, ...]
    """One sentence each: what is broken, where, and how to mend it. Empty if all is well."""
    shards: int
    molecules: int
    bytes: int
    """Of all shards in the manifest."""
    job_faults: tuple[str, ...] = ()
    """Likewise about the record of the inputs: the shards can be used, but not added to or repaired."""
    unchecked: str = ""
    """A sentence if something could not be checked because an older version prepared the folder; not a fault."""


def verify_folder(folder: str | Path, *, progress: Callable[[int, int | None], None] | None = None) -> Verification:
    """Reads all of a folder of shards and checks it against its manifest.

    It checks every byte and block of every shard (`mmsa_shards.shard.read_shard`); that no InChIKey occurs twice in a
    shard (it cannot occur in two shards, because each holds an interval of a hash of InChIKeys); the totals and the
    ledger; the bytes and the number of the refused records; the record of the inputs; and that there are no files of
    these kinds that the manifest does not list.

    Args:
        folder: a path, or a URL that fsspec supports.
        progress: called with the number of molecules read and their total.
    """
    try:
        manifest = Manifest.load(folder)
    except ManifestError as error:
        return Verification((str(error),), 0, 0, 0)
    total = sum(shard.molecules for shard in manifest.shards)
    faults: list[str] = []
    sources = Counter[str]()
    done = 0  # molecules of the shards before

    def tell(read: int) -> None:
        if progress is not None:
            progress(done + read, total)

    for shard in manifest.shards:
        checked = _check_shard(folder, shard, tell)
        faults += checked.faults
        sources += checked.sources
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
    """Returns a sentence for each shard that is missing or does not have the size that the manifest gives.

    One listing of the folder suffices, so this is quick for any amount of data and finds files that were cut short.
    What was changed in place is found only by `verify_folder`, or by `mmsa_shards.shard.read_block` once it reads the
    block.

    Raises:
        ManifestError: there is no usable manifest.
    """
    manifest = Manifest.load(folder)
    system, path = locate(str(folder))
    with reaching(str(folder)):
        system.invalidate_cache(path)  # another process may have changed the folder, before this listing or after it
        sizes = {Path(entry["name"]).name: entry["size"] for entry in system.ls(path, detail=True)}
        system.invalidate_cache(path)
    return tuple(
        f"{folder}/{shard.name} "
        + ("is missing" if shard.name not in sizes else f"has {sizes[shard.name]:,} bytes instead of {shard.bytes:,}")
        + "; make this shard again with mmsa prepare --repair"
        for shard in manifest.shards
        if sizes.get(shard.name) != shard.bytes
    )


@dataclass(frozen=True)
class _CheckedShard:
    faults: list[str]
    sources: Counter[str]
    """Of the conformers of its sound blocks."""


def _check_shard(folder: str | Path, shard: ShardEntry, progress: Callable[[int], None]) -> _CheckedShard:
    """Reads a shard; `progress` is called with the number of its molecules read so far."""
    faults: list[str] = []
    sources = Counter[str]()
    keys: list[pa.Array] = []
    read = 0
    for block in read_shard(folder, shard, on_fault=lambda fault: faults.append(str(fault))):
        keys.append(block["inchikey"])
        sources.update(block["conformer_source"].to_pylist())
        read += len(block)
        progress(read)
    counts = pc.value_counts(pa.chunked_array(keys, pa.string()))
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if twice:
        more = f"{len(twice)} InChIKeys, one of them {twice[0]}," if len(twice) > 1 else f"InChIKey {twice[0]}"
        faults.append(f"{more} stand{'' if len(twice) > 1 else 's'} more than once in {folder}/{shard.name}; {_AGAIN}")
    in_blocks = sum(block.molecules for block in shard.blocks)
    if in_blocks != shard.molecules:
        faults.append(
            f"the manifest of {folder} gives {shard.name} {shard.molecules} molecules, its blocks {in_blocks}; {_AGAIN}"
        )
    return _CheckedShard(faults, sources)


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
        reasons = Counter[str]()  # like an empty file; if records should be there, the comparison below says so
    except (OSError, ValueError, pa.ArrowException) as error:
        yield f"cannot read {folder}/{REJECTS_NAME}: {error}; {_AGAIN}"
        return
    if reasons != Counter(manifest.reject_reasons) or reasons.total() != ledger.rejected:
        yield (
            f"{folder}/{REJECTS_NAME} lists {reasons.total()} refused records ({dict(reasons)}), the ledger has "
            f"{ledger.rejected} ({manifest.reject_reasons}); {_AGAIN}"
        )


def broken_files(folder: str | Path, manifest: Manifest) -> dict[str, str]:
    """Returns, by name, what is wrong with the files beside the shards of which the manifest has digests."""
    broken = {}
    for name, expected in manifest.files.items():
        try:
            if sha256_of(file_in(folder, name)) != expected:
                broken[name] = "does not match its SHA-256 in the manifest"
        except FileNotFoundError:
            broken[name] = "is missing"
        except OSError as error:
            broken[name] = f"cannot be read ({error})"
    return broken


def _job_of_an_older_folder(folder: str | Path, manifest: Manifest) -> str:
    """Returns what is wrong with a job without a digest, as far as the manifest can tell; empty if nothing is."""
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
    """Yields a sentence for each unlisted file that looks like a shard, refused records, or a part of either."""
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
