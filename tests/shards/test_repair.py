"""Shards that are lost or damaged are made again, byte for byte, or left alone with a reason."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from mmsa_shards.block import decode_block
from mmsa_shards.errors import PrepareError
from mmsa_shards.manifest import Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.prepare import prepare
from mmsa_shards.publish import digests
from mmsa_shards.rejects import REJECTS_NAME
from mmsa_shards.repair import repair
from mmsa_shards.verify import verify_folder

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def chosen(options) -> PrepareOptions:
    return dataclasses.replace(options, conformers="etkdg", shards=3, molecules_per_block=4, workers=2)


@pytest.fixture(scope="module")
def finished(chosen, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "a.smi").write_text("\n".join(f"{'C' * n}O a{n}" for n in range(1, 25)))
    (folder / "b.smi").write_text("CCN b1\nCCO b2\nc1cccc1 bad")
    (folder / "without.smi").write_text("CCCO")
    with pytest.MonkeyPatch.context() as patch:  # none of what follows is done from there
        patch.chdir(folder)
        without = dataclasses.replace(chosen, exclude=("without.smi",))
        prepare(["a.smi"], "shards", without)
    without = dataclasses.replace(chosen, exclude=(str(folder / "without.smi"),))
    prepare([str(folder / "b.smi")], str(folder / "shards"), without)
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished / "shards", tmp_path / "shards"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_broken_shards_are_made_again(finished, folder, options):
    (folder / "train-00001.tar").unlink()
    content = bytearray((folder / "train-00002.tar").read_bytes())
    content[700] ^= 1
    (folder / "train-00002.tar").write_bytes(content)
    assert len(verify_folder(folder).faults) >= 2
    assert repair(str(folder), options) == ("train-00001.tar", "train-00002.tar")
    assert files(folder) == files(finished / "shards")
    assert verify_folder(folder).faults == ()


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("lost", [True, False])
def test_refused_records_are_written_again(finished, folder, options, lost):
    (folder / "train-00001.tar").unlink()
    if lost:
        (folder / REJECTS_NAME).unlink()
    else:
        spoil(folder / REJECTS_NAME)
    assert repair(str(folder), options) == ("train-00001.tar", REJECTS_NAME)
    assert files(folder) == files(finished / "shards")
    assert verify_folder(folder).faults == ()


def test_refused_records_take_no_embedding(finished, folder, options, chosen, tmp_path):
    """Where reading does not account for all of them, molecules are made, but their coordinates are not."""
    stages: set[str] = set()
    drawn: dict[str, set[str]] = {}

    def watch(stage: str, done: int, total: int | None, rejected: int) -> None:
        stages.update({stage} if total else ())
        for name in ("pieces", "unembedded"):
            blocks = [decode_block(path.read_bytes()) for path in tmp_path.glob(f"*/.work/{name}/*.arrow")]
            drawn.setdefault(name, set()).update(*(block["conformer_source"].to_pylist() for block in blocks))

    (folder / REJECTS_NAME).unlink()
    assert repair(str(folder), options, progress=watch) == (REJECTS_NAME,)
    assert files(folder) == files(finished / "shards")
    assert stages == {"read"}

    branches = [f"({'C' * n})" for n in (290, 280, 270)]
    (tmp_path / "a.smi").write_text(f"CCO a\nCCN b\nC{''.join(branches)} too-wide-a-drawing\nc1cccc1 bad")
    out = tmp_path / "wide"
    wide = prepare([str(tmp_path / "a.smi")], str(out), dataclasses.replace(chosen, max_atoms=1000))
    assert wide.reject_reasons == {"depiction": 1, "aromaticity": 1}
    before = files(out)
    (out / REJECTS_NAME).unlink()
    assert repair(str(out), options, progress=watch) == (REJECTS_NAME,)
    assert files(out) == before
    assert stages == {"read", "sort", "build"}
    assert drawn == {"pieces": set(), "unembedded": {"none"}}


def test_what_is_broken_is_neither_added_to_nor_passed_over(finished, folder, chosen):
    """A shard that stays is not read, and damaged refused records would enter the new ledger with a digest."""
    chosen = dataclasses.replace(chosen, exclude=(str(finished / "without.smi"),))
    (folder.parent / "c.smi").write_text("CCF c1")
    inputs = [str(finished / name) for name in ("a.smi", "b.smi")]
    prepare(inputs, str(folder), chosen)
    whole = files(folder)
    for name, spoilt, words in [
        ("train-00001.tar", whole["train-00001.tar"][:-1], "train-00001.tar has .* bytes instead of .*--repair"),
        (REJECTS_NAME, whole[REJECTS_NAME][:-9] + b"?" + whole[REJECTS_NAME][-8:], "SHA-256 in the manifest.*--repair"),
        ("job.json", whole["job.json"].replace(b"a.smi", b"x.smi"), r"job\.json does not match its SHA-256"),
        ("job.json", None, r"holds shards but no job\.json; the shards can be used, but"),
    ]:
        if spoilt is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(spoilt)
        before = {path: content for path, content in files(folder).items() if path != ".work/lock"}
        for paths in (inputs, [*inputs, str(folder.parent / "c.smi")]):
            with pytest.raises(PrepareError, match=words):
                prepare(paths, str(folder), chosen)
        assert {path: content for path, content in files(folder).items() if path != ".work/lock"} == before
        (folder / name).write_bytes(whole[name])


def test_nothing_is_done_where_nothing_is_broken(folder, options):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert repair(str(folder), options) == ()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_of_a_version_with_other_options_is_told(folder, options):
    (folder / "train-00001.tar").unlink()
    job = json.loads((folder / "job.json").read_text())
    del job["options"]["groups"]
    (folder / "job.json").write_text(json.dumps(job))
    dataclasses.replace(Manifest.load(folder), files=digests(folder)).save(folder)
    with pytest.raises(PrepareError, match=r"prepared by another version \(.*'groups'\): prepare all inputs"):
        repair(str(folder), options)


def test_what_cannot_be_repaired_is_told(finished, folder, options, tmp_path):
    with pytest.raises(PrepareError, match="holds no finished preparation"):
        repair(str(tmp_path / "nowhere"), options)
    (folder / "train-00001.tar").unlink()
    before = files(folder)
    kept = (finished / "a.smi").read_text(), (finished / "a.smi").stat()
    try:
        (finished / "a.smi").write_text("CCCCCCO a1")
        with pytest.raises(PrepareError, match=r"a\.smi has changed since this folder was prepared"):
            repair(str(folder), options)
        (finished / "a.smi").unlink()
        with pytest.raises(PrepareError, match=r"a\.smi does not exist"):
            repair(str(folder), options)
    finally:
        (finished / "a.smi").write_text(kept[0])
        os.utime(finished / "a.smi", ns=(kept[1].st_atime_ns, kept[1].st_mtime_ns))
    assert files(folder) == before
