"""Preparation as a whole: files of molecules -> a folder of shards with its manifest and its ledger.

Every step writes its files atomically into a work folder. Once all shards are written, they move into the output
folder, and the manifest is replaced last. A job that was stopped finds its files and continues from them.
`mmsa_shards.steps` has the steps, `mmsa_shards.publish` how the work ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmsa_shards.cluster import ended_by_sigterm, ray_pool
from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.job import describe
from mmsa_shards.manifest import JOB_NAME, Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.publish import finish_publishing
from mmsa_shards.steps import Preparation, Progress
from mmsa_shards.verify import broken_files, size_faults
from mmsa_shards.workplace import alone_in, claim, clear, prepared, work_folder, writing_to


def prepare(
    inputs: Sequence[str],
    out: str,
    options: PrepareOptions,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Manifest:
    """Turns files of molecules into shards in `out`, or adds them to the shards that are there.

    The same inputs in any order, with the same options, give the same bytes for any number of workers. A job that
    was stopped continues from what it had finished. Inputs that the folder was prepared from already are not read
    again, and only the shards that new molecules belong to are rewritten.

    Args:
        inputs: paths or URLs, of the kinds listed in `mmsa_shards.read.read_records`.
        out: a folder, local or at a URL that fsspec can write to; created if missing.
        options: of the preparation.
        progress: called with the progress of each stage.
        say: called with a sentence when the run waits for something, or has a warning for the user.

    Returns:
        The manifest, which is also in `out`.

    Raises:
        PrepareError: an input or `out` cannot be used; no incomplete file has a final name.
    """
    with writing_to(out, options.work_dir), ended_by_sigterm():
        folder = Folder(out)
        work = work_folder(folder, options)
        before = prepared(folder, work)
        # Before anything is written, so that a bad input leaves no files.
        job = describe(inputs, options, before.job if before else None, folder.url)
        with alone_in(work):
            finish_publishing(work, folder)
            if (now := prepared(folder, work)) != before:  # published just now, or by another run in the meantime
                before = now
                job = describe(inputs, options, before.job if before else None, folder.url)
            if before is not None:
                _refuse_what_is_broken(folder, before.manifest)
            if before is not None and before.job == job:
                clear(work)
                return before.manifest
            claim(work, folder, job, before)
            with ray_pool(options.workers, say) as pool:
                Preparation(folder, work, job, before, options, pool, progress, say).run()
            finish_publishing(work, folder)
        return Manifest.load(folder.url)


def _refuse_what_is_broken(folder: Folder, held: Manifest) -> None:
    """Checks the sizes of all shards, and the refused records, which the next ledger will include."""
    rejects = {name: what for name, what in broken_files(folder.url, held).items() if name != JOB_NAME}
    faults = [
        *size_faults(folder.url),
        *(f"{folder.url}/{name} {what}; make it again with mmsa prepare --repair" for name, what in rejects.items()),
    ]
    if faults:
        more = f" (and {len(faults) - 1} more; mmsa inspect --verify lists them)" if len(faults) > 1 else ""
        raise PrepareError(f"{faults[0]}{more}")
