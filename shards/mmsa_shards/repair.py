"""Shards that were lost or damaged -> the same shards, made again from the inputs of their folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from mmsa_shards.build import plan_shards
from mmsa_shards.cluster import ray_pool
from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.job import describe
from mmsa_shards.options import PrepareOptions
from mmsa_shards.prepare import Preparation, Progress
from mmsa_shards.shard import is_intact
from mmsa_shards.workplace import alone_in, claim, prepared, work_folder


def repair(
    out: str, options: PrepareOptions, *, progress: Progress | None = None, say: Callable[[str], None] | None = None
) -> tuple[str, ...]:
    """Makes the broken shards of a finished folder again, from its inputs, which must be what they were.

    Args:
        out: the folder.
        options: `workers` and `work_dir` are used; the others are those that the folder was prepared with.
        progress: told how far it is.
        say: told in a sentence what is waited for.

    Returns:
        Names of the shards that were made again; each has the bytes that the manifest says.

    Raises:
        PrepareError: the folder is not finished, an input is not what it was, or a shard comes out otherwise; the
            folder stays as it is.
    """
    folder = Folder(out)
    work = work_folder(folder, options)
    before = prepared(folder, work)
    if before is None:
        raise PrepareError(f"{folder.url} holds no finished preparation: run the same without --repair")
    # An input that is truncated was so when it was allowed: none has changed since.
    theirs = {**before.job.options, "exclude": tuple(before.job.options["exclude"]), "allow_truncated": True}
    try:
        options = PrepareOptions(**theirs, workers=options.workers, work_dir=options.work_dir)
    except TypeError as error:  # another version had other options
        raise PrepareError(
            f"{folder.url} was prepared by another version ({error}): prepare all inputs into another folder"
        ) from error
    job = describe([source.url for source in before.job.inputs], options, before.job)
    broken = {shard.name: shard for shard in before.manifest.shards if not is_intact(folder.url, shard)}
    if not broken:
        return ()
    with alone_in(work):
        claim(work, folder, job, before)
        with ray_pool(options.workers, say) as pool:
            preparation = Preparation(folder, work, job, None, options, pool, progress)
            chunks, counts = preparation.read()
            every = plan_shards(before.manifest.intervals, options)
            plans = [plan for plan in every if f"{plan.stem}.tar" in broken]
            deals = preparation.sort(plans, chunks, counts)
            made = preparation.write(plans, deals, preparation.build(deals, counts.rejected))
        others = [done.entry.name for done in made if done.entry and done.entry != broken[done.entry.name]]
        if others:
            raise PrepareError(
                f"{', '.join(others)} of {folder.url} would not be what it was; prepare all inputs into another folder"
            )
        for name in broken:
            folder.take(work / "shards" / name, name)
        shutil.rmtree(work)
    return tuple(broken)
