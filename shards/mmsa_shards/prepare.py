"""Preparation as a whole: files of molecules -> a folder of shards with its manifest and its ledger.

Every step writes files that appear whole, under ``.work`` in the folder until the manifest stands; a job that
was stopped finds them there and goes on. `mmsa_shards.catalog` and `mmsa_shards.build` say what the steps do.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import fsspec

from mmsa_shards.atomic import write_atomically
from mmsa_shards.build import ShardDone, ShardPlan, build_piece, deal, pack, piece_size, piece_sizes, plan_shards
from mmsa_shards.catalog import ChunkCounts, catalog_chunk, chunk_counts, chunks_of, skeletons
from mmsa_shards.cluster import Pool, ray_pool
from mmsa_shards.errors import PrepareError
from mmsa_shards.manifest import MANIFEST_NAME, Ledger, Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.read import check_kind, read_records
from mmsa_shards.rejects import read_refused, write_rejects
from mmsa_shards.schema import SCHEMA_VERSION
from mmsa_shards.shard import is_intact

#: Called with the stage (``read`` or ``build``), records or molecules done, their total (None while it is not
#: known), and records refused so far.
Progress = Callable[[str, int, int | None, int], None]

JOB_NAME = "job.json"
_WORK_NAME = ".work"
# Options that change how long it takes, not what comes out.
_WITHOUT_EFFECT = ("workers", "work_dir")
_LIBRARIES = ("rdkit", "numpy", "pyarrow")


def prepare(inputs: Sequence[str], out: str, options: PrepareOptions, *, progress: Progress | None = None) -> Manifest:
    """Turns files of molecules into shards in `out`.

    The same inputs in any order, with the same options, give the same bytes for any number of workers. What a
    job that was stopped had finished is not done again; a folder that is finished is left alone.

    Args:
        inputs: paths or URLs; `mmsa_shards.read.read_records` says of which kinds.
        out: a local folder, made where it is missing.
        options: of the preparation.
        progress: told how far it is.

    Returns:
        The manifest, which is also in `out`.

    Raises:
        PrepareError: an input or `out` cannot be used; nothing incomplete stands under a final name.
    """
    job = _describe(inputs, options)
    folder = Path(out)
    try:
        _claim(folder, job)
        if (folder / MANIFEST_NAME).exists():
            shutil.rmtree(folder / _WORK_NAME, ignore_errors=True)  # of a job stopped between these two last steps
            return Manifest.load(folder)
        with ray_pool(options.workers) as pool:
            manifest = _Preparation(folder, job, options, pool, progress or _silent).run()
        shutil.rmtree(folder / _WORK_NAME)
    except OSError as error:
        raise PrepareError(f"cannot write to {out}: {error}") from error
    return manifest


class _Preparation:
    """One run of the steps; each finds what an earlier run has left and goes on from there."""

    def __init__(
        self, folder: Path, job: dict[str, Any], options: PrepareOptions, pool: Pool, progress: Progress
    ) -> None:
        self.folder, self.job, self.options, self.pool, self.progress = folder, job, options, pool, progress
        self.inputs: list[str] = [entry["path"] for entry in job["inputs"]]
        self.work = folder / _WORK_NAME
        for name in ("catalog", "deals", "pieces", "shards"):
            (self.work / name).mkdir(parents=True, exist_ok=True)
        for abandoned in folder.rglob(".*.tmp"):  # of processes that were killed
            abandoned.unlink()

    def run(self) -> Manifest:
        chunks, counts = self.catalog()
        if counts["kept"] == 0:
            reasons = Counter(reason for path in chunks for reason in read_refused(path)["reason"].to_pylist())
            raise PrepareError(
                f"none of the {counts['read']} records of {', '.join(self.inputs)} can be used "
                f"({counts['excluded']} excluded; refused: {dict(reasons)})"
            )
        pieces, shards = self.build(chunks, counts)
        manifest = self.account([*chunks, *pieces], counts, shards)
        manifest.save(self.folder)
        return manifest

    def catalog(self) -> tuple[list[Path], Counter[str]]:
        """Reads and standardizes every input; returns the chunks, and their counts added up."""
        excluded = self.pool.share(skeletons(self.options.exclude, self.options))
        chunks: list[Path] = []
        counts = Counter[str]()

        def count(of_chunk: ChunkCounts) -> None:
            counts.update(asdict(of_chunk))
            self.progress("read", counts["read"], None, counts["rejected"])

        def calls() -> Iterator[tuple[Any, ...]]:
            for at, path in enumerate(self.inputs):
                for number, records in enumerate(chunks_of(read_records(path, self.options))):
                    target = self.work / "catalog" / f"{at:05d}-{number:06d}.arrow"
                    chunks.append(target)
                    if target.exists():
                        count(chunk_counts(target))
                    else:
                        yield target, records, excluded, self.options

        for of_chunk in self.pool.map(catalog_chunk, calls()):
            count(of_chunk)
        return chunks, counts

    def build(self, chunks: list[Path], counts: Counter[str]) -> tuple[list[Path], list[ShardDone]]:
        """Deals, builds and packs every shard; returns the pieces, and what became of the shards."""
        options = self.options
        plans = plan_shards(counts["kept"] - counts["kept_val"], counts["kept_val"], options)
        deals = {plan: self.work / "deals" / f"{plan.stem}.arrow" for plan in plans}
        size = piece_size(counts["kept"])
        missing = [(path, chunks, plan, size, options) for plan, path in deals.items() if not path.exists()]
        for _ in self.pool.map(deal, missing):
            pass

        pieces: dict[ShardPlan, list[Path]] = {}
        calls: list[tuple[Any, ...]] = []
        total = done = 0
        for plan, path in deals.items():
            sizes = piece_sizes(path)
            pieces[plan] = [self.work / "pieces" / f"{plan.stem}-{n:05d}.arrow" for n in range(len(sizes))]
            total += sum(sizes)
            for number, (piece, of_piece) in enumerate(zip(pieces[plan], sizes, strict=True)):
                if piece.exists():
                    done += of_piece
                else:
                    calls.append((piece, path, number, options))
        rejected = counts["rejected"]
        self.progress("build", done, total, rejected)
        for made, refused in self.pool.map(build_piece, calls):
            done, rejected = done + made + refused, rejected + refused
            self.progress("build", done, total, rejected)

        records = {plan: self.work / "shards" / f"{plan.stem}.json" for plan in plans}
        unpacked = [plan for plan, record in records.items() if not self._stands(record)]
        for _ in self.pool.map(
            pack, ((records[plan], self.folder, plan, deals[plan], pieces[plan], options) for plan in unpacked)
        ):
            pass
        every_piece = [path for of_shard in pieces.values() for path in of_shard]
        return every_piece, [ShardDone.load(record) for record in records.values()]

    def account(self, steps: Sequence[Path], counts: Counter[str], shards: Sequence[ShardDone]) -> Manifest:
        """Writes the ledger of refusals and draws up the manifest.

        Args:
            steps: files of both stages that have refusals beside them.
            counts: of the catalogue.
            shards: all of them.

        Raises:
            PrepareError: records are unaccounted for.
        """
        reasons = write_rejects(self.folder, map(read_refused, steps))
        entries = tuple(shard.entry for shard in shards if shard.entry is not None)
        ledger = Ledger(
            read=counts["read"],
            written=sum(entry.molecules for entry in entries),
            duplicates=sum(shard.duplicates for shard in shards),
            rejected=sum(reasons.values()),
            excluded=counts["excluded"],
        )
        if not ledger.balances:
            raise PrepareError(
                f"records are unaccounted for in {self.folder}: {ledger}; this is a defect of the preparation, please "
                "report it; no manifest was written"
            )
        sources = Counter[str]()
        for shard in shards:
            sources.update(shard.conformer_sources)
        return Manifest(
            shards=entries,
            ledger=ledger,
            reject_reasons=dict(sorted(reasons.items())),
            conformer_sources=dict(sorted(sources.items())),
            options=self.job["options"],
            versions=self.job["versions"],
        )

    def _stands(self, record: Path) -> bool:
        """Whether the shard of a record is written, and is still what was written."""
        if not record.exists():
            return False
        entry = ShardDone.load(record).entry
        return entry is None or is_intact(self.folder, entry)


def _silent(stage: str, done: int, total: int | None, rejected: int) -> None:
    """Reports to nobody."""


def _describe(inputs: Sequence[str], options: PrepareOptions) -> dict[str, Any]:
    """Returns what decides the outcome of a job: its inputs, options and library versions.

    Raises:
        PrepareError: there is no input, or one that is missing, empty, of no known kind, or named twice.
    """
    if not inputs:
        raise PrepareError("no input was named: name at least one file of molecules")
    entries = sorted(map(_describe_file, inputs), key=itemgetter("path"))
    for first, second in pairwise(entries):
        if first["path"] == second["path"]:
            raise PrepareError(f"input {first['path']} is named twice: name it once")
    job = {
        "schema_version": SCHEMA_VERSION,
        "inputs": entries,
        "exclude": [_describe_file(path) for path in options.exclude],
        "options": {name: value for name, value in asdict(options).items() if name not in _WITHOUT_EFFECT},
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    return json.loads(json.dumps(job))  # as it comes back from the file: lists for tuples


def _describe_file(path: str) -> dict[str, Any]:
    check_kind(path)
    system, inner = fsspec.core.url_to_fs(path)
    try:
        info = system.info(inner)
    except FileNotFoundError:
        raise PrepareError(f"input {path} does not exist: check the path") from None
    except OSError as error:
        raise PrepareError(f"cannot read input {path}: {error}") from error
    if info["type"] == "directory":
        raise PrepareError(f"input {path} is a folder: name the files in it")
    if info["size"] == 0:
        raise PrepareError(f"input {path} is empty: leave it out or fetch it again")
    changed = info.get("mtime") or info.get("ETag") or info.get("LastModified")
    return {"path": system.unstrip_protocol(inner), "bytes": info["size"], "changed": str(changed)}


def _claim(folder: Path, job: dict[str, Any]) -> None:
    """Makes `folder` that of `job`, or finds that it is.

    Raises:
        PrepareError: it holds something else.
    """
    path = folder / JOB_NAME
    if path.exists():
        theirs = json.loads(path.read_bytes())
        if theirs == job:
            return
        if (folder / MANIFEST_NAME).exists() or any((folder / _WORK_NAME).glob("pieces/*")):
            raise PrepareError(
                f"{folder} holds shards prepared otherwise ({_difference(theirs, job)}): name another folder, or "
                "delete this one to prepare it again"
            )
        # The other job came to nothing, perhaps for an input that has been mended since.
        shutil.rmtree(folder / _WORK_NAME, ignore_errors=True)
    elif folder.exists() and any(folder.iterdir()):
        raise PrepareError(f"{folder} is not empty and holds no preparation: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file:
        file.write(json.dumps(job, indent=1).encode())


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Says in what two jobs differ, an option by its name."""
    for section in ("options", "versions"):
        for name, value in ours[section].items():
            if theirs.get(section, {}).get(name) != value:
                return f"{name} was {theirs.get(section, {}).get(name)!r}, now {value!r}"
    names = [{entry["path"] for entry in job["inputs"]} for job in (theirs, ours)]
    if changed := names[0] ^ names[1]:
        return f"input {sorted(changed)[0]} is in only one of the two jobs"
    return "an input file or the block schema has changed since"
