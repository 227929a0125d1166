"""Where a preparation is made, and the right to be at work there.

A work folder belongs to one job, which a run that was stopped finds again, and to one process at a time. Whenever a run
is killed, it leaves a work folder that the same command takes again.
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

# What a disk has at its root.
_OF_A_DISK = "lost+found"


@dataclass(frozen=True)
class Prepared:
    """What a folder of shards holds, and what it was prepared from."""

    job: Job
    manifest: Manifest


@contextmanager
def writing_to(out: str, work_dir: str = "") -> Iterator[None]:
    """Turns what a disk refuses into a sentence.

    Args:
        out: the folder of shards.
        work_dir: as in the options; empty where what is under way is in `out` too.

    Raises:
        PrepareError: names the folder, and the setting that names another.
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
        raise PrepareError(f"cannot write to {where}: {error}; mend that, or name {mend}") from error


def _concerns(error: OSError, folder: str) -> bool:
    """Whether an error is of something in a folder."""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    return Path(error.filename).resolve().is_relative_to(Path(folder).resolve())


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
    elif work.exists() and any(not _is_as_good_as_nothing(entry) for entry in work.iterdir()):
        raise PrepareError(f"prepare.work_dir={work} is not empty: name a folder for this preparation alone")


def _is_as_good_as_nothing(entry: Path) -> bool:
    """Whether an entry of a work folder is what the disk has there, or what a run left that was killed in `claim`."""
    name = entry.name
    being_written = name.startswith(f".{_TARGET_NAME}.") and name.endswith(".tmp")
    return name == _LOCK_NAME or being_written or _is_of_the_disk(entry)


def _is_of_the_disk(entry: Path) -> bool:
    return entry.name == _OF_A_DISK and entry.parent.is_mount()


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
    theirs = {name for name in folder.names() if folder.path is None or not _is_of_the_disk(folder.path / name)}
    if not (work / JOB_NAME).exists() and theirs - {_WORK_NAME}:
        raise PrepareError(f"{folder.url} is not empty and holds no preparation: name another folder")
    return None


@contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Keeps other preparations out of a work folder, which is made where it is missing."""
    work.mkdir(parents=True, exist_ok=True)
    refusal = PrepareError(f"another preparation is at work in {work}: wait for its end, or stop it")
    with locked(work / _LOCK_NAME, refusal):
        yield


def clear(work: Path) -> None:
    """Removes a work folder, and last in it what says whose it is.

    The folder itself stays where it cannot be removed: where it is a mount point, or in a folder of somebody else's.
    """
    entries = [entry for entry in work.iterdir() if entry.name not in (_TARGET_NAME, _LOCK_NAME)]
    for entry in (*entries, work / _TARGET_NAME, work / _LOCK_NAME):
        if _is_of_the_disk(entry):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        work.rmdir()


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
