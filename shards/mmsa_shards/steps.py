"""The steps of one job: read, sort, build, write, account. Each continues from the files of an earlier run.

`mmsa_shards.catalog` and `mmsa_shards.build` describe what is done within a step.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from mmsa_shards.build import (
    Dealt,
    ShardDone,
    ShardPlan,
    build_piece,
    count_intervals,
    deal,
    how_many_made,
    pack,
    piece_size,
    piece_sizes,
    plan_shards,
)
from mmsa_shards.catalog import Chapter, ChunkCounts, catalog_input
from mmsa_shards.cluster import Pool
from mmsa_shards.conformers_nvmolkit import require_nvmolkit
from mmsa_shards.errors import ChangedError, PrepareError
from mmsa_shards.exclude import excluded_by
from mmsa_shards.folder import Folder
from mmsa_shards.job import Job
from mmsa_shards.manifest import Ledger, Manifest, ShardEntry, Split
from mmsa_shards.options import PrepareOptions
from mmsa_shards.publish import digests, publish_shard
from mmsa_shards.rejects import REJECTS_NAME, read_refused, stored_rejects, write_rejects
from mmsa_shards.shard import is_intact
from mmsa_shards.workplace import Prepared

#: Called with the stage (``read``, ``sort``, ``build`` or ``write``), the records, shards or molecules done, their
#: total (None if unknown, an estimate while reading), and the records refused so far.
Progress = Callable[[str, int, int | None, int], None]

_LOG = logging.getLogger(__name__)

# If workers would be idle, several tasks share an input; each of them reads all of it.
_SMALLEST_PART = 1 << 16  # bytes
_PARTS_PER_WORKER = 2

# Multiples of prepare.molecules_per_shard: from the first on there is a warning, from the second on a refusal.
_WARN_FACTOR, _REFUSE_FACTOR = 2, 10


class Preparation:
    """One run of the steps, each of which continues from the files of an earlier run. Call `set_up` first."""

    def __init__(
        self,
        folder: Folder,
        work: Path,
        job: Job,
        before: Prepared | None,
        options: PrepareOptions,
        pool: Pool,
        progress: Progress | None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.folder, self.work, self.job, self.before = folder, work, job, before
        self.options, self.pool, self.progress = options, pool, progress or _ignore_progress
        self.say = say or _ignore_message
        self.gpus = 1 if options.conformers == "etkdg" and options.conformer_backend == "nvmolkit" else 0
        known = {source.key for source in before.job.inputs} if before else set()
        self.chapters = [Chapter(work / "catalog", source) for source in job.inputs if source.key not in known]
        self.held: dict[str, ShardEntry] = (
            {shard.name.removesuffix(".tar"): shard for shard in before.manifest.shards} if before else {}
        )

    def set_up(self, *, embed: bool = True) -> None:
        """Creates the folders of the steps.

        Args:
            embed: whether molecules are to be embedded.

        Raises:
            PrepareError: a node cannot see the work folder, or embedding requires a GPU and there is none.
        """
        self.pool.check_that_all_see(self.work)
        if self.gpus and embed:
            list(self.pool.map(require_nvmolkit, [()], gpus=self.gpus))
        shutil.rmtree(self.work / "making", ignore_errors=True)
        for name in ("catalog", "deals", "making", "pieces", "unembedded", "shards"):
            (self.work / name).mkdir(exist_ok=True)
        for abandoned in self.work.rglob(".*.tmp"):  # of processes that were killed
            abandoned.unlink()

    def run(self) -> None:
        """Runs all steps up to the manifest, which is left in the work folder to be published."""
        self.set_up()
        chunks, counts = self.read()
        if counts.kept == 0 and self.before is None:
            reasons = Counter(reason for batch in read_refused(chunks) for reason in batch["reason"].to_pylist())
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
        self.check_sizes(deals)
        pieces = self.build(deals, counts.rejected)
        shards = self.write(plans, deals, pieces)
        manifest = self.account(counts, intervals, shards, chunks, [*chain.from_iterable(pieces.values())])
        dataclasses.replace(manifest, files=digests(self.work)).save(self.work)
        if self.folder.path is None:  # all nodes share the upload
            moves = [(self.work / "shards" / shard.name, self.folder.url) for shard in manifest.shards]
            for _ in self.pool.map(publish_shard, moves):
                pass

    def read(self) -> tuple[list[Path], ChunkCounts]:
        """Reads and standardizes every new input; returns the chunks and their summed counts.

        Raises:
            PrepareError: lists all inputs that cannot be used; raised after the others are done.
        """
        excluded = self.excluded()
        todo = sorted((c for c in self.chapters if not c.is_done), key=lambda c: -c.source.bytes)
        chapters = {chapter.source.key: chapter for chapter in todo}
        left = {key: self.parts_of(chapter, len(todo)) for key, chapter in chapters.items()}
        num_bytes = sum(chapter.source.bytes for chapter in self.chapters)
        # There may be many inputs, so only those under way are looked at again.
        counts = sum((chapter.look() for chapter in self.chapters), ChunkCounts())
        under_way: dict[str, Chapter] = {}

        def calls() -> Iterator[tuple[Any, ...]]:
            for key, parts in left.items():
                under_way[key] = chapters[key]
                for part in range(parts):
                    yield chapters[key], part, parts, excluded, self.options

        def tell() -> None:
            nonlocal counts
            counts = sum((chapter.look() for chapter in under_way.values()), counts)
            estimate = counts.read * num_bytes // counts.input_bytes if counts.input_bytes else None
            self.progress("read", counts.read, estimate, counts.rejected)

        unusable: dict[str, PrepareError] = {}
        for key, num_chunks in self.pool.map(catalog_input, calls(), heartbeat=tell):
            left[key] -= 1
            if isinstance(num_chunks, PrepareError):
                if not isinstance(unusable.get(key), ChangedError):  # which explains any other error
                    unusable[key] = num_chunks
            elif left[key] == 0 and key not in unusable:
                chapters[key].close(num_chunks)
            # Should its former state come back, its chunks are not to be found. Those of each part go at once, as this
            # run may be stopped before the last part.
            if isinstance(unusable.get(key), ChangedError):
                chapters[key].clear()
            if left[key] == 0:  # what the last heartbeat has not seen counts too
                counts += under_way.pop(key).look()
        if unusable:
            raise PrepareError("\n".join(map(str, unusable.values())))
        self.progress("read", counts.read, counts.read, counts.rejected)
        return [path for chapter in self.chapters for path in chapter.chunks], counts

    def excluded(self) -> Any:
        """Returns the skeletons of all molecules to exclude, shared with all tasks; says which cannot be read."""
        skeletons: set[str] = set()
        for found, unread in self.pool.map(excluded_by, ((source, self.options) for source in self.job.exclude)):
            skeletons |= found
            if unread:
                self.say(unread)
        return self.pool.share(frozenset(skeletons))

    def parts_of(self, chapter: Chapter, inputs: int) -> int:
        """Returns the number of tasks that share an input, given the number of inputs to read."""
        wanted = -(-self.pool.workers * _PARTS_PER_WORKER // inputs) if inputs < self.pool.workers else 1
        return max(1, min(wanted, chapter.source.bytes // _SMALLEST_PART))

    def sort(self, plans: Sequence[ShardPlan], chunks: list[Path], counts: ChunkCounts) -> dict[ShardPlan, Path]:
        """Decides which molecules every shard will hold; returns the files of `mmsa_shards.build.deal`."""
        deals = {plan: self.work / "deals" / f"{plan.stem}.arrow" for plan in plans}
        size, shared = piece_size(counts.kept), self.pool.share(chunks)
        missing = [
            (path, shared, plan, self.held.get(plan.stem), self.folder.url, size, self.options)
            for plan, path in deals.items()
            if not path.exists()
        ]
        self.make(deal, missing, "sort", len(deals), counts.rejected)
        return deals

    def make(
        self, function: Callable[..., object], missing: Sequence[tuple[Any, ...]], stage: str, total: int, rejected: int
    ) -> None:
        """Writes the `missing` ones of `total` files, and reports how many exist."""
        done = total - len(missing)

        def tell() -> None:
            self.progress(stage, done, total, rejected)

        for _ in self.pool.map(function, missing, heartbeat=tell):
            done += 1
            tell()

    def check_sizes(self, deals: dict[ShardPlan, Path]) -> None:
        """Warns if added molecules make shards far larger than requested, as the number of shards is fixed.

        Raises:
            PrepareError: they would be absurdly large.
        """
        if self.before is None:
            return
        asked = self.options.molecules_per_shard
        for split in get_args(Split):
            if split == "train" and self.options.shards:  # an explicit number is used as given
                continue
            molecules = [Dealt.load(path).molecules for plan, path in deals.items() if plan.split == split]
            each = sum(molecules) // max(1, len(molecules))
            if each < _WARN_FACTOR * asked:
                continue
            what = (
                f"{self.folder.url} has {len(molecules)} intervals for {split}, chosen for its first inputs, "
                f"and with these inputs about {each:,} molecules in each, {each / asked:.0f} times "
                f"prepare.molecules_per_shard={asked}"
            )
            mend = "prepare all inputs into another folder" + (
                ", with prepare.shards set if more are to follow" if split == "train" else ""
            )
            if each >= _REFUSE_FACTOR * asked:
                raise PrepareError(f"{what}: {mend}; this one is unchanged")
            self.say(f"{what}; for smaller shards, {mend}")

    def build(self, deals: dict[ShardPlan, Path], rejected: int, *, embed: bool = True) -> dict[ShardPlan, list[Path]]:
        """Computes the columns of all new molecules; returns the pieces of every shard.

        Pieces built without embedding, which takes most of the time, cannot go into shards, but have the same refusals.
        """
        options, gpus, folder = self.options, self.gpus, self.work / "pieces"
        if not embed and options.conformers == "etkdg":
            options, gpus, folder = dataclasses.replace(options, conformers="given"), 0, self.work / "unembedded"
        pieces: dict[ShardPlan, list[Path]] = {}
        calls: list[tuple[Any, ...]] = []
        total = done = 0
        for plan, path in deals.items():
            sizes = piece_sizes(path)
            pieces[plan] = [folder / f"{plan.stem}-{n:05d}.arrow" for n in range(len(sizes))]
            total += sum(sizes)
            for number, (piece, of_piece) in enumerate(zip(pieces[plan], sizes, strict=True)):
                if piece.exists():
                    done += of_piece
                else:
                    calls.append((piece, path, number, options, self.work / "making" / piece.name))
        reported = without_gpu = 0

        def tell() -> None:
            nonlocal reported
            under_way = sum(how_many_made(path) for path in (self.work / "making").iterdir())
            reported = max(reported, min(done + under_way, total))  # a piece just finished may be in neither count
            self.progress("build", reported, total, rejected)

        tell()
        for made, refused, why in self.pool.map(build_piece, calls, gpus=gpus, heartbeat=tell):
            done, rejected = done + made + refused, rejected + refused
            if why and not without_gpu:
                _LOG.warning("%s, and those of other batches that fail", why)
            without_gpu += bool(why)
            tell()
        if without_gpu:
            _LOG.warning("nvMolKit failed on %s of %s batches: check the GPU", f"{without_gpu:,}", f"{len(calls):,}")
        return pieces

    def write(
        self, plans: Sequence[ShardPlan], deals: dict[ShardPlan, Path], pieces: dict[ShardPlan, list[Path]]
    ) -> list[ShardDone]:
        """Writes every shard that changes; returns the outcomes of all shards."""
        records = {plan: self.work / "shards" / f"{plan.stem}.json" for plan in plans}
        missing = [
            (record, deals[plan], pieces[plan], plan, self.held.get(plan.stem), self.folder.url, self.options)
            for plan, record in records.items()
            if not self.stands(record)
        ]
        self.make(pack, missing, "write", len(records), 0)
        return [ShardDone.load(record) for record in records.values()]

    def account(
        self,
        counts: ChunkCounts,
        intervals: dict[Split, int],
        shards: Sequence[ShardDone],
        chunks: Sequence[Path],
        pieces: Sequence[Path],
    ) -> Manifest:
        """Writes the ledger of refusals and returns the manifest.

        Args:
            counts: counts of the new inputs.
            intervals: number of shards of each split.
            shards: outcomes of all shards.
            chunks: files of the catalogue.
            pieces: all pieces that were built.

        Raises:
            PrepareError: records are unaccounted for.
        """
        before = self.before.manifest if self.before else Manifest(shards=(), ledger=Ledger())
        reasons = self.write_ledger([*chunks, *pieces])
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
            inputs=before.inputs | {c.source.name: c.counts.read for c in self.chapters},
            intervals=intervals,
            options=self.job.options,
            versions=self.job.versions,
        )

    def write_ledger(self, beside: Sequence[Path]) -> Counter[str]:
        """Writes all refused records, of earlier runs and beside these files; returns their number for each reason."""
        earlier = stored_rejects(self.folder.url) if self.before else ()
        return write_rejects(self.work / REJECTS_NAME, chain(earlier, read_refused(beside)))

    def stands(self, record: Path) -> bool:
        """Returns whether the shard of a record has been written and is intact."""
        if not record.exists():
            return False
        entry = ShardDone.load(record).entry
        return entry is None or entry == self.held.get(record.stem) or is_intact(record.parent, entry)


def _ignore_message(words: str) -> None:
    """Ignores the message."""


def _ignore_progress(stage: str, done: int, total: int | None, rejected: int) -> None:
    """Ignores the progress."""
