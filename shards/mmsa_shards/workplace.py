"""The work folder of a preparation, and its lock.

A work folder belongs to one job, with which a stopped run can be resumed, and to one process at a time. Whenever a run
is killed, the same command can continue in the work folder that it leaves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
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

# Exists at the root of a file system.
_LOST_AND_FOUND = "lost+found"


@dataclass(frozen=True)
class Prepared:
    """The manifest of a finished folder of shards, and the job that produced it."""

    job: Job
    manifest: Manifest


@contextmanager
def writing_to(out: str, work_dir: str = "") -> Iterator[None]:
    """Converts errors of the file system into `PrepareError`.

    Args:
        out: the folder of shards.
        work_dir: as in the options; empty if the work folder is in `out`.

    Raises:
        PrepareError: names the folder, and the setting by which to choose another.
    """
    try:
        yield
    except OSError as error:
        if work_dir and _concerns(error, work_dir):
            where, mend = work_dir, "another folder with prepare.work_dir"
        elif not work_dir or _concerns(error, out):
            where, mend = out, "another folder with --out"
        else:
            where, mend = f"{out} or {work_dir}", "other folders with --out and prepare.work_dir"
        raise PrepareError(f"cannot write to {where}: {error}; fix that, or name {mend}") from error


def _concerns(error: OSError, folder: str) -> bool:
    """Returns whether an error is about a file in a folder."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    return Path(error.filename).resolve().is_relative_to(Path(folder).resolve())


def held_manifest(out: str) -> Manifest | None:
    """Returns the manifest of an output folder; None if there is none yet.

    Raises:
        PrepareError: the folder cannot be accessed.
    """
    with writing_to(out):
        return Manifest.load(out) if Folder(out).read(MANIFEST_NAME) is not None else None


def work_folder(folder: Folder, options: PrepareOptions) -> Path:
    """Returns the work folder.

    Raises:
        PrepareError: the folder of shards is remote and no work folder was named, or it is in the memory of a process,
            or the work folder holds other files.
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
            f"{folder.url} is not a folder of this machine: name one for intermediate files, visible to all nodes, "
            "with prepare.work_dir=..."
        )
    return folder.path / _WORK_NAME


def _check_ours(work: Path, folder: Folder) -> None:
    """Raises PrepareError if a folder holds anything but this preparation, as its contents are removed at the end."""
    if folder.path is not None and work.resolve() in (folder.path.resolve(), *folder.path.resolve().parents):
        raise PrepareError(f"prepare.work_dir={work} holds {folder.url} itself: name another")
    target = work / _TARGET_NAME
    if target.exists():
        if (theirs := target.read_text()) != folder.url:
            raise PrepareError(f"prepare.work_dir={work} belongs to the preparation of {theirs}: name another")
    elif work.exists() and any(not _is_negligible(entry) for entry in work.iterdir()):
        raise PrepareError(f"prepare.work_dir={work} is not empty: name a folder for this preparation alone")


def _is_negligible(entry: Path) -> bool:
    """Returns whether an entry of a work folder belongs to the file system, or to a run that was killed in `claim`."""
    name = entry.name
    being_written = name.startswith(f".{_TARGET_NAME}.") and name.endswith(".tmp")
    return name == _LOCK_NAME or being_written or _is_lost_and_found(entry)


def _is_lost_and_found(entry: Path) -> bool:
    return entry.name == _LOST_AND_FOUND and entry.parent.is_mount()


def prepared(folder: Folder, work: Path) -> Prepared | None:
    """Returns what a folder holds; None if it is empty, or an earlier job is unfinished.

    Raises:
        PrepareError: it holds something else.
    """
    job = folder.read(JOB_NAME)
    is_moving = (work / MANIFEST_NAME).exists()  # finished files move one after the other
    if job is not None:
        manifest, digest = Manifest.load(folder.url), hashlib.sha256(job).hexdigest()
        if manifest.files.get(JOB_NAME, digest) != digest and not is_moving:
            raise PrepareError(f"{folder.url}/{JOB_NAME} does not match its SHA-256 in the manifest; {WITHOUT_JOB}")
        return Prepared(Job.from_json(job), manifest)
    if folder.read(MANIFEST_NAME) is not None and not is_moving:
        raise PrepareError(f"{folder.url} holds shards but no {JOB_NAME}; {WITHOUT_JOB}")
    theirs = {name for name in folder.names() if folder.path is None or not _is_lost_and_found(folder.path / name)}
    if not (work / JOB_NAME).exists() and theirs - {_WORK_NAME}:
        raise PrepareError(f"{folder.url} is not empty and holds no preparation: name another folder")
    return None


@contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Locks a work folder, which is created if missing, against other preparations.

    At the end an empty folder is removed, if possible: it may be a mount point, or in a folder of another user.
    """
    work.mkdir(parents=True, exist_ok=True)
    refusal = PrepareError(f"another preparation is at work in {work}: wait until it ends, or stop it")
    try:
        with locked(work / _LOCK_NAME, refusal):
            yield
    finally:
        with contextlib.suppress(OSError):
            work.rmdir()


def clear(work: Path) -> None:
    """Empties a work folder, apart from its lock.

    The job goes first, because files without a job are leftovers, and the file that identifies the owner goes last.
    """
    (work / JOB_NAME).unlink(missing_ok=True)
    _remove_leftovers(work)
    (work / _TARGET_NAME).unlink(missing_ok=True)


def _remove_leftovers(work: Path) -> None:
    """Removes all files of a job from a work folder that has none."""
    for entry in work.iterdir():
        if entry.name in (_TARGET_NAME, _LOCK_NAME) or _is_lost_and_found(entry):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def claim(work: Path, folder: Folder, job: Job, before: Prepared | None) -> None:
    """Assigns a work folder to a job, if it is not already; reusable files of another job are kept.

    Raises:
        PrepareError: the work folder is in use by another job, or the output folder was prepared with other settings.
    """
    if before is not None and (difference := job.difference(before.job)):
        raise PrepareError(
            f"{folder.url} holds shards prepared with other settings ({difference}): name another folder, or delete "
            "this one to prepare it again"
        )
    path, target = work / JOB_NAME, work / _TARGET_NAME
    if path.exists():
        theirs = Job.from_json(path.read_bytes())
        if theirs == job:
            return
        difference = job.difference(theirs)
        if any((work / "pieces").glob("*")):
            what = difference or "it has other inputs"
            raise PrepareError(
                f"{folder.url} holds another preparation, which is unfinished ({what}): finish it first, or name "
                f"another folder, or delete {work}, which discards what it has made so far"
            )
        # The other job built nothing, perhaps because of an input that has been fixed since.
        for name in ("deals", "shards", *(["catalog"] if difference else [])):
            shutil.rmtree(work / name, ignore_errors=True)
    else:
        _remove_leftovers(work)  # of a run that was killed in `clear`
    with write_atomically(target) as file:
        file.write(folder.url.encode())
    with write_atomically(path) as file:
        file.write(job.to_json())
