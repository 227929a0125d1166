"""Inputs and shards elsewhere: a folder of files by URL, and buckets of a server that speaks S3."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import fsspec
import pytest

from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.manifest import Manifest
from mmsa_shards.prepare import prepare
from mmsa_shards.rejects import read_rejects
from mmsa_shards.shard import read_block, read_shard
from mmsa_shards.verify import size_faults
from tests.fixtures.local_ray import started_ray

server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

pytestmark = pytest.mark.distributed

MOLECULES = [f"{'C' * n}{end} m{n}{end}" for n in range(1, 9) for end in ("O", "N", "Cl")]


@pytest.fixture(scope="module", autouse=True)
def bucket():
    """A bucket on loopback, known to this process and to the workers of a Ray that is started after it."""
    with pytest.MonkeyPatch.context() as patch:
        s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        s3.start()
        host, port = s3.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        with started_ray():
            yield "s3://bucket"
        s3.stop()


@pytest.fixture(params=["s3", "file"])
def there(request, bucket, tmp_path) -> str:
    """The URL of a place that is not named by a plain path."""
    return f"{bucket}/{tmp_path.name}" if request.param == "s3" else f"file://{tmp_path}/there"


def test_files_appear_in_a_folder_and_replace_each_other(there, tmp_path):
    folder = Folder(f"{there}/shards")
    assert (folder.names(), folder.read("a.json")) == ([], None)
    folder.write("a.json", b"1")
    folder.write("a.json", b"2")
    (tmp_path / "b.tar").write_bytes(b"3")
    folder.take(tmp_path / "b.tar", "b.tar")
    assert not (tmp_path / "b.tar").exists()
    assert (folder.read("a.json"), folder.read("b.tar")) == (b"2", b"3")
    assert folder.names() == ["a.json", "b.tar"]
    with fsspec.open(f"{folder.url}/b.tar", "rb") as file:
        assert file.read() == b"3"


def test_shards_made_there_are_those_made_here(there, options, tmp_path):
    chosen = dataclasses.replace(options, shards=2, molecules_per_block=4)
    texts = {"one.smi.gz": MOLECULES[:16], "two.smi.gz": [*MOLECULES[12:], "c1cccc1 bad"]}
    for name, lines in texts.items():
        (tmp_path / name).write_bytes(gzip.compress("\n".join(lines).encode()))
        with fsspec.open(f"{there}/{name}", "wb", auto_mkdir=True) as file:
            file.write((tmp_path / name).read_bytes())
    here = prepare([str(tmp_path / name) for name in texts], str(tmp_path / "here"), chosen)

    out, work = f"{there}/shards", dataclasses.replace(chosen, work_dir=str(tmp_path / "work"))
    prepare([f"{there}/one.smi.gz"], out, work)
    manifest = prepare([f"{there}/one.smi.gz", f"{there}/two.smi.gz"], out, work)
    assert manifest == Manifest.load(out)
    assert manifest.digest == here.digest
    assert read_rejects(out).to_pylist() == read_rejects(tmp_path / "here").to_pylist()
    for shard in here.shards:
        list(read_shard(out, shard))
        assert read_block(out, shard, 0).equals(read_block(tmp_path / "here", shard, 0))
    assert not (tmp_path / "work").exists()


def test_what_is_under_way_needs_a_place_on_this_machine(bucket, options, tmp_path):
    (tmp_path / "a.smi").write_text("CCO")
    with pytest.raises(PrepareError, match=r"s3://bucket/shards is not a folder of this machine.*prepare\.work_dir"):
        prepare([str(tmp_path / "a.smi")], f"{bucket}/shards", options)


def test_a_work_folder_serves_one_preparation(options, tmp_path):
    (tmp_path / "a.smi").write_text("CCO")
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.tex").write_text("precious")
    chosen = dataclasses.replace(options, work_dir=str(work))
    with pytest.raises(PrepareError, match="work is not empty"):
        prepare([str(tmp_path / "a.smi")], str(tmp_path / "out"), chosen)
    assert [path.name for path in Path(work).iterdir() if path.name != "lock"] == ["thesis.tex"]


def test_sizes_are_those_of_now_whatever_was_listed_before(bucket, options, tmp_path):
    (tmp_path / "a.smi").write_text("\n".join(MOLECULES))
    chosen = dataclasses.replace(options, conformers="none", shards=1, work_dir=str(tmp_path / "work"))
    out = f"{bucket}/sizes"
    manifest = prepare([str(tmp_path / "a.smi")], out, chosen)
    assert size_faults(out) == ()
    name = manifest.shards[0].name
    other = fsspec.filesystem("s3", skip_instance_cache=True)  # as of another process
    other.pipe_file(f"bucket/sizes/{name}", other.cat_file(f"bucket/sizes/{name}") + b"more")
    assert len(size_faults(out)) == 1
