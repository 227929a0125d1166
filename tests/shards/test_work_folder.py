"""The folder of what is under way: never one that holds anything else, for in the end all of it is removed."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from mmsa_shards.atomic import write_atomically
from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.job import describe
from mmsa_shards.workplace import alone_in, claim, clear, prepared, work_folder, writing_to


@pytest.fixture
def choose(options, tmp_path):
    """Asks for the work folder of the preparation of `shards`."""

    def chosen(name: str) -> object:
        work = dataclasses.replace(options, work_dir=str(tmp_path / name))
        return work_folder(Folder(tmp_path / "shards"), work)

    return chosen


def test_a_folder_that_holds_something_else_is_refused(choose, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")  # as of a finished preparation
    with pytest.raises(PrepareError, match=r"work_dir=\S*mine is not empty: name a folder for this preparation alone"):
        choose("mine")
    assert (tmp_path / "mine" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["shards", ".", "shards/../shards"])
def test_the_folder_of_the_shards_and_those_around_it_are_refused(choose, tmp_path, name):
    (tmp_path / "shards").mkdir()
    with pytest.raises(PrepareError, match=r"holds \S*shards itself: name another"):
        choose(name)


def test_that_of_another_preparation_is_refused(choose, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "target").write_text("/elsewhere")
    (tmp_path / "work" / "manifest.json").write_text("{}")  # which was about to be published there
    with pytest.raises(PrepareError, match="belongs to the preparation of /elsewhere: name another"):
        choose("work")


def test_its_own_is_taken(choose, tmp_path):
    assert choose("new") == tmp_path / "new"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "lock").touch()
    assert choose("new") == tmp_path / "new"
    (tmp_path / "new" / "target").write_text(Folder(tmp_path / "shards").url)
    (tmp_path / "new" / "job.json").write_text("{}")
    assert choose("new") == tmp_path / "new"


def filled(work: Path, target: str) -> Path:
    (work / "pieces").mkdir(parents=True, exist_ok=True)
    for name in ("lock", "job.json", "pieces/a", "pieces/b"):
        (work / name).touch()
    (work / "target").write_text(target)
    return work


class Killed(BaseException):
    """As a kill ends a process: nothing below can catch it and clean up."""


def test_what_a_run_leaves_that_is_killed_while_it_clears_up_is_taken(choose, tmp_path, monkeypatch):
    work = filled(tmp_path / "work", Folder(tmp_path / "shards").url)
    left = -1

    def may_be_killed(call):
        def removing(*arguments, **keywords):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return call(*arguments, **keywords)

        return removing

    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, may_be_killed(getattr(os, name)))
    for removals in range(1, 6):
        filled(work, Folder(tmp_path / "shards").url)
        left = removals
        with pytest.raises(Killed):
            clear(work)
        assert (work / "job.json").exists() == (removals == 1), "what is left without a job belongs to none"
        assert choose("work") == work
    filled(work, Folder(tmp_path / "shards").url)
    left = 6
    clear(work)
    assert [entry.name for entry in work.iterdir()] == ["lock"]
    left = -1
    with alone_in(work):
        pass
    assert not work.exists()


def test_what_is_left_without_a_job_is_no_part_of_the_next(tmp_path, options):
    (tmp_path / "a.smi").write_text("CCO a\n")
    work = filled(tmp_path / "work", "/shards")
    (work / "job.json").unlink()  # as `clear` does before all others
    claim(work, Folder("/shards"), describe([str(tmp_path / "a.smi")], options, None), None)
    assert sorted(entry.name for entry in work.iterdir()) == ["job.json", "lock", "target"]


def test_what_a_run_leaves_that_is_killed_while_it_claims_is_taken(choose, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "lock").touch()
    (tmp_path / "work" / ".target.0123456789abcdef.tmp").write_text("/so")
    assert choose("work") == tmp_path / "work"


def test_a_mount_point_is_taken_and_stays(choose, tmp_path, small_disk):
    disk, _ = small_disk("1m")
    (disk / "lost+found").mkdir()
    assert choose("disk") == disk
    assert prepared(Folder(disk), disk / ".work") is None
    with alone_in(disk):
        clear(filled(disk, Folder(tmp_path / "shards").url))
    assert [entry.name for entry in disk.iterdir()] == ["lost+found"]


def test_lost_and_found_of_no_disk_is_a_folder_like_any_other(choose, tmp_path):
    (tmp_path / "mine" / "lost+found").mkdir(parents=True)
    with pytest.raises(PrepareError, match="is not empty"):
        choose("mine")


def test_a_folder_that_may_not_be_removed_is_emptied(tmp_path, monkeypatch):
    work, remove = filled(tmp_path / "work", "/shards"), Path.rmdir

    def refuse(path: Path) -> None:
        if path == work:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr(Path, "rmdir", refuse)
    with alone_in(work):
        clear(work)
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "work_dir", "words"),
    [
        ("{}/out/a", "", "cannot write to {}/out: .*fix that, or name another folder with --out$"),
        (None, "", "cannot write to {}/out: .* --out$"),
        ("{}/work/a", "{}/work", "cannot write to {}/work: .* name another folder with prepare.work_dir$"),
        ("{}/out/work/a", "{}/out/work", "cannot write to {}/out/work: .* with prepare.work_dir$"),
        ("{}/out/a", "{}/work", "cannot write to {}/out: .* name another folder with --out$"),
        (None, "{}/work", "cannot write to {}/out or {}/work: .* other folders with --out and prepare.work_dir$"),
    ],
)
def test_a_fault_names_the_folder_that_it_is_of(tmp_path, place, work_dir, words):
    fill = str(tmp_path).join
    error = OSError(errno.EROFS, "Read-only file system", place and fill(place.split("{}")))
    with (
        pytest.raises(PrepareError, match=fill(words.split("{}"))),
        writing_to(str(tmp_path / "out"), fill(work_dir.split("{}"))),
    ):
        raise error


def test_a_full_disk_is_told_with_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '\S*/a'"), write_atomically(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
