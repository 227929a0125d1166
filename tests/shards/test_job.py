"""The job: names of inputs, what makes two jobs differ, and inputs that cannot be used."""

from __future__ import annotations

import dataclasses
import os

import fsspec
import pytest

from mmsa_shards.errors import PrepareError
from mmsa_shards.job import Job, check_unchanged, describe
from tests.fixtures.download_server import serving


@pytest.fixture
def files(tmp_path):
    for name in ("a/x.smi", "b/x.smi", "b/y.smi", "c/b/x.smi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("C")
    return tmp_path


def names(job: Job) -> list[str]:
    return [source.name for source in job.inputs]


def test_inputs_have_the_shortest_names_that_tell_them_apart(files, options):
    paths = [str(files / name) for name in ("a/x.smi", "b/x.smi", "b/y.smi")]
    assert names(describe(paths, options, None)) == ["a/x.smi", "b/x.smi", "y.smi"]
    assert describe(paths[::-1], options, None) == describe(paths, options, None)
    paths.append(str(files / "c/b/x.smi"))
    assert names(describe(paths, options, None)) == ["a/x.smi", "c/b/x.smi", f"{files.name}/b/x.smi", "y.smi"]


def test_the_query_of_a_url_which_may_be_secret_is_in_no_name(options):
    with serving() as server:
        urls = [f"{server.url}{name}" for name in ("a.csv.gz?sig=SECRET/x", "b/get?sig=SECRET&file=a.csv")]
        for url in urls:
            server.put(url.removeprefix(server.url), b"smiles\nCCO\n")
        assert names(describe(urls, options, None)) == ["a.csv.gz", "get"]
        assert names(describe([f"simplecache::{urls[0]}"], options, None)) == ["a.csv.gz"]
        server.put("b/get?sig=SECRET&file=b.csv", b"smiles\nCCN\n")
        urls.append(f"{server.url}b/get?sig=SECRET&file=b.csv")
        different = set(names(describe(urls, options, None)))
        assert len(different) == 3
        assert {name[8:] for name in different - {"a.csv.gz"}} == {f"/{server.url}b/get"}


def test_folders_and_patterns_stand_for_files(files, options):
    (files / "b" / "x.smi.md5").write_text("no molecules")
    every = [str(files / name) for name in ("a/x.smi", "b/x.smi", "b/y.smi", "c/b/x.smi")]
    whole = describe(every, options, None)
    assert describe([str(files)], options, None) == whole
    assert describe([str(files / "*" / "*.smi"), every[3]], options, None) == whole
    with pytest.raises(PrepareError, match="named twice"):
        describe([str(files / "b"), every[1]], options, None)


@pytest.mark.parametrize("name", ["c.smi.bz2", "c.SDF.ZST", "below/c.smi.gzip", "c.csv.zip"])
def test_a_file_in_a_folder_that_is_packed_otherwise_is_refused_as_if_named(tmp_path, options, name):
    (tmp_path / "a.smi").write_text("C")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"packed")
    messages = []
    for path in (tmp_path, tmp_path / "**", tmp_path / name):
        with pytest.raises(PrepareError, match=rf"{name} is (packed in an unsupported format|of no kind)") as error:
            describe([str(path)], options, None)
        messages.append(str(error.value).removeprefix("file://"))
    assert len(set(messages)) == 1
    plain = (tmp_path / name).with_suffix("")
    for beside in (plain, plain.with_name(f"{plain.name}.gz")):
        beside.write_text("C")
        assert names(describe([str(tmp_path)], options, None)) == ["a.smi", beside.name]
        beside.unlink()


def test_files_that_are_passed_over_are_told(files, options, caplog):
    for name in ("a/notes.txt", "b/x.smi.md5", "b/archive.zip", "c/x.sd", "c/z.xyz", "a/.hidden"):
        (files / name).write_text("no molecules")
    describe([str(files)], options, None)
    (told,) = caplog.messages
    start = f"{files}: left out are files of no kind that can be read (file://{files}/a/notes.txt, "
    assert told == f"{start}file://{files}/b/archive.zip, file://{files}/c/x.sd and 1 more)"
    caplog.clear()
    describe([str(files / "b" / "y*"), str(files / "*" / "x.smi")], options, None)
    assert caplog.messages == [], "folders are not files"


def test_shards_in_a_folder_are_no_input(files, options, caplog):
    """Their refused records are a table, without SMILES."""
    before, shards = describe([str(files)], options, None), files / "b" / "shards"
    (shards / "rejects").mkdir(parents=True)
    (shards / "manifests").mkdir()
    written = ("train-00000.tar", "val-00000.tar", "rejects/part-00000.parquet", "manifests/0123456789ab.json")
    for name in ("manifest.json", "job.json", *written):
        (shards / name).write_text("as `mmsa prepare` writes it")
    assert describe([str(files)], options, None) == before
    assert caplog.messages == [f"{files}: left out are shards (file://{shards})"]
    with pytest.raises(
        PrepareError,
        match=r"b/shards matches no file .* holds shards .*/b/shards\): name the files that they were prepared from, "
        "or, to embed their molecules, the folder of the shards itself",
    ):
        describe([str(shards)], options, None)
    (shards / "job.json").unlink()  # a manifest of something else
    assert len(describe([str(files)], options, None).inputs) == len(before.inputs) + 1


def test_files_of_molecules_beside_and_below_shards_are_inputs(tmp_path, options):
    for name in ("manifest.json", "job.json", "rejects/part-00000.parquet", "raw/a.smi", "test.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("C")
    assert names(describe([str(tmp_path)], options, None)) == ["a.smi", "test.csv"]


def test_inputs_that_were_there_keep_their_names(files, options):
    before = describe([str(files / "a/x.smi")], options, None)
    assert names(before) == ["x.smi"]
    after = describe([str(files / "b/x.smi")], options, before)
    assert names(after) == ["b/x.smi", "x.smi"]
    assert describe([str(files / "a/x.smi")], options, after) == after


def test_an_input_that_has_changed_is_another(files, options):
    path = files / "a/x.smi"
    before = describe([str(path)], options, None)
    path.write_text("CC")
    os.utime(path, (1, 1))
    assert describe([str(path)], options, None).inputs[0].key != before.inputs[0].key
    with pytest.raises(PrepareError, match=r"x\.smi has changed since .* another folder"):
        describe([str(path)], options, before)


@pytest.mark.parametrize("etags", [True, False])
def test_an_input_that_has_changed_on_a_server_is_another(options, etags):
    with serving() as server:
        server.etags = etags
        server.put("a.smi", b"CCO a")
        before = describe([f"{server.url}a.smi"], options, None)
        assert describe([f"{server.url}a.smi"], options, before) == before
        check_unchanged(before.inputs[0])
        server.put("a.smi", b"CCN a", time=1_800_000_000.0)
        with pytest.raises(PrepareError, match=r"^file \S+/a\.smi has changed since this preparation began"):
            check_unchanged(before.inputs[0])
        fsspec.filesystem("http").invalidate_cache()
        with pytest.raises(PrepareError, match=r"a\.smi has changed since"):
            describe([f"{server.url}a.smi"], options, before)
        untold = dataclasses.replace(before, inputs=(dataclasses.replace(before.inputs[0], changed="None"),))
        assert describe([f"{server.url}a.smi"], options, untold) == untold  # of a server that did not say


def test_what_a_server_does_not_tell_is_no_change(options):
    with serving() as server:
        server.put("a.smi", b"CCO a")
        (source,) = describe([f"{server.url}a.smi"], options, None).inputs
        check_unchanged(dataclasses.replace(source, bytes=0))
        server.etags = False  # Last-Modified stays
        check_unchanged(source)
        with pytest.raises(PrepareError, match="has changed"):
            check_unchanged(dataclasses.replace(source, bytes=4))


def test_jobs_come_back_from_their_files(files, options):
    job = describe([str(files / "a/x.smi")], options, None)
    assert Job.from_json(job.to_json()) == job
    for content in (b"", b"[]", b'{"inputs": [], "exclude": [], "options": {}}', b'{"inputs": [{"path": "x"}]}'):
        with pytest.raises(PrepareError, match="another version"):
            Job.from_json(content)


def test_what_bears_on_the_outcome_is_compared_and_nothing_else(files, options):
    def job(**changes):
        return describe([str(files / "a/x.smi")], dataclasses.replace(options, **changes), None)

    assert job(workers=7, work_dir="elsewhere", allow_truncated=True) == job()
    assert job(seed=1).difference(job()) == "seed was 0, now 1"
    assert job().difference(job()) == ""
    without = (str(files / "b/y.smi"),)
    before = job(exclude=without)
    assert before.difference(job()).startswith("exclude was [], now ['file:///")
    (files / "b/y.smi").write_text("CCC")
    assert job(exclude=without).difference(before) == "a file of prepare.exclude has changed"


def test_files_to_be_excluded_are_the_same_from_wherever_they_are_named(files, options, monkeypatch):
    def job(*exclude):
        return describe([str(files / "a/x.smi")], dataclasses.replace(options, exclude=exclude), None)

    before = job(str(files / "b"))
    assert before.options["exclude"] == ["x.smi", "y.smi"], "no digest of a manifest hangs on where they lie"
    for folder, words in [(files, ("b/y.smi", "b/x.smi")), (files / "b", ("*.smi",)), (files / "c", ("../b",))]:
        monkeypatch.chdir(folder)
        assert job(*words) == before
    as_typed = dataclasses.replace(before, options={**before.options, "exclude": ["../b"]})  # as older versions kept it
    assert before.difference(as_typed) == ""
    (files / "b" / "y.smi").unlink()
    assert job("../b").difference(before).startswith("exclude was ['file:///")


def test_a_name_that_is_no_utf_8_is_told_at_once(tmp_path, options):
    (tmp_path / "caf\udce9.smi").write_text("C")
    for path in (tmp_path, tmp_path / "caf\udce9.smi"):
        with pytest.raises(
            PrepareError, match=r"the name of input \S*/caf\\xe9\.smi is not UTF-8.*: rename it"
        ) as error:
            describe([str(path)], options, None)
        str(error.value).encode()


def test_what_was_made_of_a_folder_is_no_input_of_it(options, files):
    out, before = files / "shards", describe([str(files)], options, None)
    (out / "rejects").mkdir(parents=True)
    (out / "rejects" / "part-00000.parquet").write_bytes(b"not molecules")
    (files / "._y.smi").write_bytes(b"of a file browser")
    assert describe([str(files)], options, None, str(out)) == before
    roundabout = f"{files}/shards/.."
    assert describe([roundabout], options, None, f"{roundabout}/shards") == before
    with pytest.raises(PrepareError, match="matches no file that can be read"):
        describe([str(out)], options, None, str(out))
