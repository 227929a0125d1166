"""The manifest: round trip, digest, numbering, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsa_shards.manifest import BlockEntry, Ledger, Manifest, ManifestError, ShardEntry


def _shard(name: str, *sizes: int) -> ShardEntry:
    blocks = tuple(BlockEntry(512 + 4096 * n, 1000, size, 0) for n, size in enumerate(sizes))
    split = "val" if name.startswith("val") else "train"
    return ShardEntry(name, split, sum(sizes), "0" * 64, 10240, blocks)


MANIFEST = Manifest(
    shards=(_shard("val-00000.tar", 3), _shard("train-00001.tar", 4, 1), _shard("train-00000.tar", 4, 4)),
    ledger=Ledger(read=23, written=16, duplicates=2, joined=3, rejected=1, excluded=1),
    reject_reasons={"syntax": 1},
    conformer_sources={"etkdg": 15, "none": 1},
    options={"seed": 0},
    versions={"rdkit": "2026.9.1"},
)


def test_round_trip(tmp_path):
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST
    assert Manifest.load(f"file://{tmp_path}").digest == MANIFEST.digest


def test_shards_are_in_the_order_of_their_names():
    assert [shard.name for shard in MANIFEST.split("train")] == ["train-00000.tar", "train-00001.tar"]
    assert MANIFEST.molecules("train") == 13
    assert MANIFEST.molecules("val") == 3


def test_any_change_changes_the_digest():
    assert dataclasses.replace(MANIFEST, options={"seed": 1}).digest != MANIFEST.digest
    assert dataclasses.replace(MANIFEST, shards=MANIFEST.shards[:2]).digest != MANIFEST.digest


@given(st.tuples(*[st.integers(0, 5)] * 6))
def test_the_ledger_balances_exactly_when_every_record_is_accounted_for(counts):
    assert Ledger(*counts).balances == (counts[0] == sum(counts[1:]))


def test_files_beside_the_shards_are_no_part_of_the_digest(tmp_path):
    """The job among them knows where the inputs lay. A manifest that has none of them is an older one, and good."""
    sealed = dataclasses.replace(MANIFEST, files={"job.json": "0" * 64, "rejects/part-00000.parquet": "1" * 64})
    assert sealed.digest == MANIFEST.digest
    sealed.save(tmp_path)
    assert Manifest.load(tmp_path).files == sealed.files
    data = json.loads((tmp_path / "manifest.json").read_text())
    del data["files"]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    assert Manifest.load(tmp_path) == MANIFEST


@pytest.mark.parametrize("name", ["../job.json", "/etc/x.json", "rejects/../x.parquet", "shards/x.parquet", "x.pkl"])
def test_a_file_outside_the_folder_is_refused(tmp_path, name):
    dataclasses.replace(MANIFEST, files={name: "0" * 64}).save(tmp_path)
    with pytest.raises(ManifestError, match="which is not a file of its folder"):
        Manifest.load(tmp_path)


def test_missing_folder_and_missing_manifest_are_one_sentence(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ManifestError, match=r"no manifest\.json in .*mmsa prepare"):
            Manifest.load(folder)


def test_a_file_in_place_of_a_folder_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "a.smi").write_text("C")
    with pytest.raises(ManifestError, match=r"a\.smi is not a folder: name one that `mmsa prepare` has finished"):
        Manifest.load(tmp_path / "a.smi")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=r"no b\.json in \.: name a manifest that is there"):
        Manifest.load_file("b.json")


def test_other_schema_damage_and_editing_are_refused(tmp_path):
    MANIFEST.save(tmp_path)
    path = tmp_path / "manifest.json"
    good = json.loads(path.read_text())
    for change, message in [
        ({"schema_version": 99}, "block schema 99"),
        ({"options": {"seed": 7}}, "own digest"),
        ({"shards": None}, "not a manifest"),
        ({"surprise": 1}, "not a manifest"),
        ({"files": ["job.json"]}, "not a manifest"),
    ]:
        path.write_text(json.dumps(good | change))
        with pytest.raises(ManifestError, match=message):
            Manifest.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ManifestError, match=r"manifest\.json is damaged .*: fetch it again, or prepare the shards"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["../train-00000.tar", "/etc/passwd", "a/train-00000.tar", "..", "", ".tar", "x.pkl", "a\\b.tar"]
)
def test_a_shard_outside_the_folder_is_refused(tmp_path, name):
    dataclasses.replace(MANIFEST, shards=(*MANIFEST.shards, _shard(name, 4))).save(tmp_path)
    with pytest.raises(ManifestError, match="which is not a file of its folder"):
        Manifest.load(tmp_path)
