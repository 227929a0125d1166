"""The folder of what is under way: never one that holds anything else, for in the end all of it is removed."""

from __future__ import annotations

import dataclasses

import pytest

from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.workplace import work_folder


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
