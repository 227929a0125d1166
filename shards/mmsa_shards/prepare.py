"""Preparation as a whole: files of molecules -> a folder of shards with its manifest and its ledger.

Every step writes files that appear whole, in a work folder, until all shards are there; then they move into the
folder of the shards and the manifest is replaced last. A job that was stopped finds its files and goes on.
`mmsa_shards.catalog` and `mmsa_shards.build` say what the steps do, `mmsa_shards.publish` how the work ends.
"""

from __future__ import annotations

import fcntl
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmsa_shards.atomic import write_atomically
from mmsa_shards.build import (
    ShardDone,
    ShardPlan,
    build_piece,
    count_intervals,
    deal,
    pack,
    piece_size,
    piece_sizes,
    plan_shards,
)
from mmsa_shards.catalog import Chapter, ChunkCounts, catalog_input, skeletons
from mmsa_shards.cluster import Pool, ray_pool
from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.job import JOB_NAME, Job, describe
from mmsa_shards.manifest import MANIFEST_NAME, Ledger, Manifest, ShardEntry, Split
from mmsa_shards.options import PrepareOptions
from mmsa_shards.publish import finish_publishing, publish_shard
from mmsa_shards.rejects import REJECTS_NAME, read_refused, read_rejects, write_rejects
from mmsa_shards.shard import is_intact

#: Called with the stage (``read``, ``sort``, ``build`` or ``write``), records, shards or molecules done, how many
#: there are in all (None while it is not known, estimated while reading), and records refused so far.
Progress = Callable[[str, int, int | None, int], None]

WORK_NAME = ".work"
_LOCK_NAME = "lock"
_TARGET_NAME = "target"

# One input is read by several tasks where workers would have nothing to do; each reads all of it.
_SMALLEST_PART = 1 << 16  # bytes
_PARTS_PER_WORKER = 2


def prepare(inputs: Sequence[str], out: str, options: PrepareOptions, *, progress: Progress | None = None) -> Manifest:
    """Turns files of molecules into shards in `out`, or adds them to the shards that are there.

    The same inputs in any order, with the same options, give the same bytes for any number of workers. What a
    job that was stopped had finished is not done again; inputs that the folder was prepared from already are
    left alone, and of its shards only those that new molecules belong to are written again.

    Args:
        inputs: paths or URLs; `mmsa_shards.read.read_records` says of which kinds.
        out: a folder, local or at a URL that fsspec can write to; made where it is missing.
        options: of the preparation.
        progress: told how far it is.

    Returns:
        The manifest, which is also in `out`.

    Raises:
        PrepareError: an input or `out` cannot be used; nothing incomplete stands under a final name.
    """
    try:
        folder = Folder(out)
        work = _work_folder(folder, options)
        before = _prepared(folder, work)
        job = describe(
            inputs, options, before.job if before else None
        )  # a wrong input is told before anything is written
        with _alone_in(work):
            if finish_publishing(work, folder):
                before = _prepared(folder, work)
                job = describe(inputs, options, before.job if before else None)
            if before is not None and before.job == job:
                shutil.rmtree(work, ignore_errors=True)
                return before.manifest
            _claim(work, folder, job, before)
            with ray_pool(options.workers) as pool:
                pool.check_that_all_see(work)
                _Preparation(folder, work, job, before, options, pool, progress or _silent).run()
            finish_publishing(work, folder)
        return Manifest.load(folder.url)
    except OSError as error:
        raise PrepareError(f"cannot write to {out}: {error}") from error


def held_manifest(out: str) -> Manifest | None:
    """Returns the manifest of a folder that may be added to; None where there is none yet."""
    return Manifest.load(out) if Folder(out).read(MANIFEST_NAME) is not None else None


@dataclass(frozen=True)
class Prepared:
    """What a folder of shards holds, and what it was prepared from."""

    job: Job
    manifest: Manifest


class _Preparation:
    """One run of the steps; each finds what an earlier run has left and goes on from there."""

    def __init__(
        self,
        folder: Folder,
        work: Path,
        job: Job,
        before: Prepared | None,
        options: PrepareOptions,
        pool: Pool,
        progress: Progress,
    ) -> None:
        self.folder, self.work, self.job, self.before = folder, work, job, before
        self.options, self.pool, self.progress = options, pool, progress
        for name in ("catalog", "deals", "pieces", "shards"):
            (work / name).mkdir(exist_ok=True)
        for abandoned in work.rglob(".*.tmp"):  # of processes that were killed
            abandoned.unlink()
        known = {source.key for source in before.job.inputs} if before else set()
        self.chapters = [Chapter(work / "catalog", source) for source in job.inputs if source.key not in known]
        self.held: dict[str, ShardEntry] = (
            {shard.name.removesuffix(".tar"): shard for shard in before.manifest.shards} if before else {}
        )

    def run(self) -> None:
        """Takes every step up to the manifest, which waits in the work folder to be published."""
        self.read()
        counts = sum((chapter.counts() for chapter in self.chapters), ChunkCounts())
        chunks = [path for chapter in self.chapters for path in chapter.chunks]
        if counts.kept == 0 and self.before is None:
            reasons = Counter(read_refused(chunks)["reason"].to_pylist())
            raise PrepareError(
                f"none of the {counts.read} records of {', '.join(s.name for s in self.job.inputs)} can be used "
                f"({counts.excluded} excluded; refused: {dict(reasons)})"
            )
        intervals = count_intervals(
            counts.kept - counts.kept_val,
            counts.kept_val,
            self.before.manifest.intervals if self.before else {},
            self.options,
        )
        plans = plan_shards(intervals, self.options)
        deals = self.sort(plans, chunks, counts)
        pieces = self.build(deals, counts.rejected)
        shards = self.write(plans, deals, pieces)
        manifest = self.account(counts, intervals, shards, [path for paths in pieces.values() for path in paths])
        manifest.save(self.work)
        if self.folder.path is None:  # an upload is work for all nodes
            moves = [(self.work / "shards" / shard.name, self.folder.url) for shard in manifest.shards]
            for _ in self.pool.map(publish_shard, moves):
                pass

    def read(self) -> None:
        """Reads and standardizes every new input."""
        excluded = self.pool.map(skeletons, ((source, self.options) for source in self.job.exclude))
        shared = self.pool.share(reduce(or_, excluded, frozenset()))
        todo = sorted((c for c in self.chapters if not c.is_done), key=lambda c: -c.source.bytes)
        chapters = {chapter.source.key: chapter for chapter in todo}
        left = {key: self.parts_of(chapter, len(todo)) for key, chapter in chapters.items()}
        calls = [
            (chapters[key], part, parts, shared, self.options) for key, parts in left.items() for part in range(parts)
        ]
        for key, num_chunks in self.pool.map(catalog_input, calls, heartbeat=self.tell_how_much_is_read):
            left[key] -= 1
            if left[key] == 0:
                chapters[key].close(num_chunks)
        self.tell_how_much_is_read()

    def parts_of(self, chapter: Chapter, inputs: int) -> int:
        """Returns by how many tasks an input is read, where so many are to be read."""
        wanted = -(-self.pool.workers * _PARTS_PER_WORKER // inputs) if inputs < self.pool.workers else 1
        return max(1, min(wanted, chapter.source.bytes // _SMALLEST_PART))

    def tell_how_much_is_read(self) -> None:
        """Reports the records read, with their whole number estimated from the bytes they took."""
        counts = sum((chapter.counts() for chapter in self.chapters), ChunkCounts())
        total = sum(chapter.source.bytes for chapter in self.chapters)
        done = all(chapter.is_done for chapter in self.chapters)
        estimate = counts.read * total // counts.input_bytes if counts.input_bytes else None
        self.progress("read", counts.read, counts.read if done else estimate, counts.rejected)

    def sort(self, plans: Sequence[ShardPlan], chunks: list[Path], counts: ChunkCounts) -> dict[ShardPlan, Path]:
        """Decides what every shard is to hold; returns the files that say it."""
        deals = {plan: self.work / "deals" / f"{plan.stem}.arrow" for plan in plans}
        size, shared = piece_size(counts.kept), self.pool.share(chunks)
        missing = [
            (path, shared, plan, self.held.get(plan.stem), self.folder.url, size, self.options)
            for plan, path in deals.items()
            if not path.exists()
        ]
        done = len(deals) - len(missing)
        for _ in self.pool.map(deal, missing):
            done += 1
            self.progress("sort", done, len(deals), counts.rejected)
        return deals

    def build(self, deals: dict[ShardPlan, Path], rejected: int) -> dict[ShardPlan, list[Path]]:
        """Makes the columns of all new molecules; returns the pieces of every shard."""
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
                    calls.append((piece, path, number, self.options))
        self.progress("build", done, total, rejected)
        for made, refused in self.pool.map(build_piece, calls):
            done, rejected = done + made + refused, rejected + refused
            self.progress("build", done, total, rejected)
        return pieces

    def write(
        self, plans: Sequence[ShardPlan], deals: dict[ShardPlan, Path], pieces: dict[ShardPlan, list[Path]]
    ) -> list[ShardDone]:
        """Writes every shard that changes; returns what became of all of them."""
        records = {plan: self.work / "shards" / f"{plan.stem}.json" for plan in plans}
        missing = [
            (record, deals[plan], pieces[plan], plan, self.held.get(plan.stem), self.folder.url, self.options)
            for plan, record in records.items()
            if not self.stands(record)
        ]
        done = len(records) - len(missing)
        for _ in self.pool.map(pack, missing):
            done += 1
            self.progress("write", done, len(records), 0)
        return [ShardDone.load(record) for record in records.values()]

    def account(
        self, counts: ChunkCounts, intervals: dict[Split, int], shards: Sequence[ShardDone], pieces: Sequence[Path]
    ) -> Manifest:
        """Writes the ledger of refusals and draws up the manifest.

        Args:
            counts: of the new inputs.
            intervals: into how many shards each split is cut.
            shards: all of them.
            pieces: all that were built.

        Raises:
            PrepareError: records are unaccounted for.
        """
        before = self.before.manifest if self.before else Manifest(shards=(), ledger=Ledger(0, 0, 0, 0, 0, 0))
        others = [read_refused(pieces), *([read_rejects(self.folder.url)] if self.before else [])]
        chapters = {chapter.source.name: chapter.chunks for chapter in self.chapters}
        reasons = write_rejects(self.work / REJECTS_NAME, chapters, pa.concat_tables(others))
        entries = tuple(shard.entry for shard in shards if shard.entry is not None)
        ledger = Ledger(
            read=before.ledger.read + counts.read,
            written=sum(entry.molecules for entry in entries),
            duplicates=before.ledger.duplicates + sum(shard.duplicates for shard in shards),
            joined=before.ledger.joined + sum(shard.joined for shard in shards),
            rejected=sum(reasons.values()),
            excluded=before.ledger.excluded + counts.excluded,
        )
        if not ledger.balances:
            raise PrepareError(
                f"records are unaccounted for in {self.folder.url}: {ledger}; this is a defect of the preparation, "
                "please report it; no manifest was written"
            )
        sources = Counter(before.conformer_sources)
        for shard in shards:
            sources.update(shard.conformer_sources)
        return Manifest(
            shards=entries,
            ledger=ledger,
            reject_reasons=dict(sorted(reasons.items())),
            conformer_sources={name: count for name, count in sorted(sources.items()) if count},
            standardization=dict(sorted((Counter(before.standardization) + Counter(counts.changes)).items())),
            inputs=before.inputs | {c.source.name: c.counts().read for c in self.chapters},
            intervals=intervals,
            options=self.job.options,
            versions=self.job.versions,
        )

    def stands(self, record: Path) -> bool:
        """Whether the shard of a record is written, and is still what was written."""
        if not record.exists():
            return False
        entry = ShardDone.load(record).entry
        return entry is None or entry == self.held.get(record.stem) or is_intact(record.parent, entry)


def _silent(stage: str, done: int, total: int | None, rejected: int) -> None:
    """Reports to nobody."""


def _work_folder(folder: Folder, options: PrepareOptions) -> Path:
    if options.work_dir:
        return Path(options.work_dir)
    if folder.path is None:
        raise PrepareError(
            f"{folder.url} is no folder of this machine: name one for what is under way, which all nodes see, with "
            "prepare.work_dir=..."
        )
    return folder.path / WORK_NAME


def _prepared(folder: Folder, work: Path) -> Prepared | None:
    """Returns what a folder holds; None where it is empty, or an earlier job has not come to its end.

    Raises:
        PrepareError: it holds something else.
    """
    job = folder.read(JOB_NAME)
    if job is not None:
        return Prepared(Job.from_json(job), Manifest.load(folder.url))
    if not (work / JOB_NAME).exists() and set(folder.names()) - {WORK_NAME}:
        raise PrepareError(f"{folder.url} is not empty and holds no preparation: name another folder")
    return None


@contextmanager
def _alone_in(work: Path) -> Iterator[None]:
    """Keeps other preparations out of a work folder, which is made where it is missing."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(f"another preparation is at work in {work}: wait for its end, or stop it") from None
        yield


def _claim(work: Path, folder: Folder, job: Job, before: Prepared | None) -> None:
    """Makes a work folder that of a job, or finds that it is; what of another job can serve is kept.

    Raises:
        PrepareError: the work folder is in use for something else, or the folder was prepared otherwise.
    """
    mend = "name another folder, or delete this one to prepare it again"
    if before is not None and (difference := job.difference(before.job)):
        raise PrepareError(f"{folder.url} holds shards prepared otherwise ({difference}): {mend}")
    path, target = work / JOB_NAME, work / _TARGET_NAME
    if not path.exists():
        if {entry.name for entry in work.iterdir()} - {_LOCK_NAME, _TARGET_NAME}:
            raise PrepareError(f"prepare.work_dir={work} is not empty: name a folder for this preparation alone")
    elif target.read_text() != folder.url:
        raise PrepareError(f"prepare.work_dir={work} belongs to the preparation of {target.read_text()}: name another")
    else:
        theirs = Job.from_json(path.read_bytes())
        if theirs == job:
            return
        difference = job.difference(theirs)
        if any((work / "pieces").glob("*")):
            what = difference or "its inputs were others"
            raise PrepareError(f"{folder.url} holds a preparation begun otherwise ({what}): finish it first, or {mend}")
        # The other job came to nothing, perhaps for an input that has been mended since.
        for name in ("deals", "shards", *(["catalog"] if difference else [])):
            shutil.rmtree(work / name, ignore_errors=True)
    with write_atomically(target) as file:
        file.write(folder.url.encode())
    with write_atomically(path) as file:
        file.write(job.to_json())
