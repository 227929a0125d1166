"""Rebuilds lost or damaged files of a folder of shards, byte for byte, from the inputs of the folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain

from mmsa_shards.build import plan_shards
from mmsa_shards.cluster import ended_by_sigterm, ray_pool
from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.job import describe
from mmsa_shards.manifest import JOB_NAME
from mmsa_shards.options import PrepareOptions
from mmsa_shards.publish import digests
from mmsa_shards.shard import is_intact
from mmsa_shards.steps import Preparation, Progress
from mmsa_shards.verify import broken_files
from mmsa_shards.workplace import alone_in, claim, clear, prepared, work_folder, writing_to


def repair(
    out: str, options: PrepareOptions, *, progress: Progress | None = None, say: Callable[[str], None] | None = None
) -> tuple[str, ...]:
    """Rebuilds the broken files of a finished folder from its inputs, which must not have changed.

    For a shard, only its own molecules are built. For the refused records all inputs are read; if that does not yield
    all of them, all molecules are built too, without conformers.

    Args:
        out: the folder.
        options: `workers` and `work_dir` are used; the others are those that the folder was prepared with.
        progress: called with the progress of each stage.
        say: called with a sentence when the run waits for something.

    Returns:
        Names of the rebuilt files, whose digests equal those of the manifest.

    Raises:
        PrepareError: the folder is not finished, an input has changed, or a rebuilt file differs from the manifest;
            the folder stays as it is.
    """
    with writing_to(out, options.work_dir), ended_by_sigterm():
        return _repair(Folder(out), options, progress, say)


def _repair(
    folder: Folder, options: PrepareOptions, progress: Progress | None, say: Callable[[str], None] | None
) -> tuple[str, ...]:
    work = work_folder(folder, options)
    before = prepared(folder, work)
    if before is None:
        raise PrepareError(f"{folder.url} holds no finished preparation: run the same command without --repair")
    # A truncated input was accepted when the folder was prepared, and no input has changed since.
    theirs = {
        **before.job.options,
        "exclude": tuple(entry.url for entry in before.job.exclude),
        "allow_truncated": True,
    }
    try:
        options = PrepareOptions(**theirs, workers=options.workers, work_dir=options.work_dir)
    except TypeError as error:  # another version had different options
        raise PrepareError(
            f"{folder.url} was prepared by another version ({error}): prepare all inputs into another folder"
        ) from error
    job = describe([source.url for source in before.job.inputs], options, before.job)
    broken = {shard.name: shard for shard in before.manifest.shards if not is_intact(folder.url, shard)}
    rejects = sorted(broken_files(folder.url, before.manifest).keys() - {JOB_NAME})
    if not broken and not rejects:
        return ()
    with alone_in(work):
        claim(work, folder, job, before)
        with ray_pool(options.workers, say) as pool:
            preparation = Preparation(folder, work, job, None, options, pool, progress)
            preparation.set_up(embed=bool(broken))
            chunks, counts = preparation.read()
            every = plan_shards(before.manifest.intervals, options)
            plans = [plan for plan in every if f"{plan.stem}.tar" in broken]
            deals = preparation.sort(plans, chunks, counts)
            pieces = preparation.build(deals, counts.rejected)
            made = preparation.write(plans, deals, pieces)
            known = [*chunks, *chain.from_iterable(pieces.values())]
            if rejects and preparation.write_ledger(known) != Counter(before.manifest.reject_reasons):
                # The others were refused when the molecules of the other shards were built.
                rest = preparation.sort([plan for plan in every if plan not in deals], chunks, counts)
                more = preparation.build(rest, counts.rejected, embed=False)
                preparation.write_ledger([*known, *chain.from_iterable(more.values())])
        others = [done.entry.name for done in made if done.entry and done.entry != broken[done.entry.name]]
        if rejects:
            found = digests(work)
            others += [name for name in rejects if found.get(name) != before.manifest.files[name]]
        if others:
            raise PrepareError(
                f"{', '.join(others)} of {folder.url} cannot be rebuilt identically; prepare all inputs into another "
                "folder"
            )
        for name in broken:
            folder.take(work / "shards" / name, name)
        for name in rejects:
            folder.take(work / name, name)
        clear(work)
    return (*broken, *rejects)
