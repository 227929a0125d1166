"""Where a preparation is made, and the right to be at work there.

A work folder belongs to one job, which a run that was stopped finds again, and to one process at a time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmsa_shards.atomic import write_atomically
from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder, is_in_memory
from mmsa_shards.job import Job
from mmsa_shards.lock import locked
from mmsa_shards.manifest import JOB_NAME, MANIFEST_NAME, Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.verify import WITHOUT_JOB

_WORK_NAME = ".work"
_LOCK_NAME = "lock"
_TARGET_NAME = "target"


@dataclass(frozen=True)
class Prepared:
    """What a folder of shards holds, and what it was prepared from."""

    job: Job
    manifest: Manifest


@contextmanager
def writing_to(out: str) -> Iterator[None]:
    """Says of which folder of shards what a disk refuses is told."""
    try:
        yield
    except OSError as error:
        raise PrepareError(f"cannot write to {out}: {error}; mend that, or name another folder with --out") from error


def held_manifest(out: str) -> Manifest | None:
    """Returns the manifest of a folder that may be added to; None where there is none yet.

    Raises:
        PrepareError: there can be no folder.
    """
    with writing_to(out):
        return Manifest.load(out) if Folder(out).read(MANIFEST_NAME) is not None else None


def work_folder(folder: Folder, options: PrepareOptions) -> Path:
    """Returns the folder of what is under way.

    Raises:
        PrepareError: the folder of the shards is elsewhere, and no other was named; or it is where only one process
            could see it.
    """
    if is_in_memory(folder.url):
        raise PrepareError(
            f"{folder.url} is in the memory of one process, and shards are made by many: name a folder on a disk or in "
            "an object store"
        )
    if options.work_dir:
        work = Path(options.work_dir)
        _check_ours(work, folder)
        return work
    if folder.path is None:
        raise PrepareError(
            f"{folder.url} is no folder of this machine: name one for what is under way, which all nodes see, with "
            "prepare.work_dir=..."
        )
    return folder.path / _WORK_NAME


def _check_ours(work: Path, folder: Folder) -> None:
    """Refuses a folder that holds anything but this preparation, for in the end all of it is removed."""
    if folder.path is not None and work.resolve() in (folder.path.resolve(), *folder.path.resolve().parents):
        raise PrepareError(f"prepare.work_dir={work} holds {folder.url} itself: name another")
    target = work / _TARGET_NAME
    if target.exists():
        if (theirs := target.read_text()) != folder.url:
            raise PrepareError(f"prepare.work_dir={work} belongs to the preparation of {theirs}: name another")
    elif work.exists() and {entry.name for entry in work.iterdir()} - {_LOCK_NAME}:
        raise PrepareError(f"prepare.work_dir={work} is not empty: name a folder for this preparation alone")


def prepared(folder: Folder, work: Path) -> Prepared | None:
    """Returns what a folder holds; None where it is empty, or an earlier job has not come to its end.

    Raises:
        PrepareError: it holds something else.
    """
    job = folder.read(JOB_NAME)
    is_moving = (work / MANIFEST_NAME).exists()  # what is ready moves one file after the other
    if job is not None:
        manifest, digest = Manifest.load(folder.url), hashlib.sha256(job).hexdigest()
        if manifest.files.get(JOB_NAME, digest) != digest and not is_moving:
            raise PrepareError(f"{folder.url}/{JOB_NAME} does not match its SHA-256 in the manifest; {WITHOUT_JOB}")
        return Prepared(Job.from_json(job), manifest)
    if folder.read(MANIFEST_NAME) is not None and not is_moving:
        raise PrepareError(f"{folder.url} holds shards but no {JOB_NAME}; {WITHOUT_JOB}")
    if not (work / JOB_NAME).exists() and set(folder.names()) - {_WORK_NAME}:
        raise PrepareError(f"{folder.url} is not empty and holds no preparation: name another folder")
    return None


@contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Keeps other preparations out of a work folder, which is made where it is missing."""
    work.mkdir(parents=True, exist_ok=True)
    refusal = PrepareError(f"another preparation is at work in {work}: wait for its end, or stop it")
    with locked(work / _LOCK_NAME, refusal):
        yield


def claim(work: Path, folder: Folder, job: Job, before: Prepared | None) -> None:
    """Makes a work folder that of a job, or finds that it is; what of another job can serve is kept.

    Raises:
        PrepareError: the work folder is in use for something else, or the folder was prepared otherwise.
    """
    if before is not None and (difference := job.difference(before.job)):
        raise PrepareError(
            f"{folder.url} holds shards prepared otherwise ({difference}): name another folder, or delete this one to "
            "prepare it again"
        )
    path, target = work / JOB_NAME, work / _TARGET_NAME
    if path.exists():
        theirs = Job.from_json(path.read_bytes())
        if theirs == job:
            return
        difference = job.difference(theirs)
        if any((work / "pieces").glob("*")):
            what = difference or "its inputs were others"
            raise PrepareError(
                f"{folder.url} holds a preparation begun otherwise ({what}): finish it first, or name another folder, "
                f"or delete {work}, which loses what that one has made so far"
            )
        # The other job came to nothing, perhaps for an input that has been mended since.
        for name in ("deals", "shards", *(["catalog"] if difference else [])):
            shutil.rmtree(work / name, ignore_errors=True)
    with write_atomically(target) as file:
        file.write(folder.url.encode())
    with write_atomically(path) as file:
        file.write(job.to_json())
