"""A verified folder: good ones pass, and every kind of damage is named, all at once."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import fsspec
import pyarrow as pa
import pytest

from mmsa_shards.manifest import Manifest
from mmsa_shards.publish import digests
from mmsa_shards.read import Place, Refused
from mmsa_shards.rejects import REJECTS_NAME, rejects_table, write_rejects
from mmsa_shards.shard import read_block, write_shard
from mmsa_shards.verify import verify_folder

REFUSED = [
    Refused("a", Place("in.smi", 1), "syntax", "RDKit cannot parse it"),
    Refused("b", Place("in.smi", 2), "valence", "carbon has five bonds"),
]


def _save(folder, **changes) -> Manifest:
    manifest = dataclasses.replace(Manifest.load(folder), **changes)
    manifest.save(folder)
    return manifest


@pytest.fixture(scope="module")
def whole(make_tiny_shards, tmp_path_factory):
    """Three shards of 55 molecules, and two refused records."""
    folder = make_tiny_shards(tmp_path_factory.mktemp("verify"))
    write_rejects(folder / REJECTS_NAME, rejects_table(REFUSED).to_batches())
    ledger = dataclasses.replace(Manifest.load(folder).ledger, read=57, rejected=2)
    sources = {"etkdg": 43, "none": 12}
    _save(folder, ledger=ledger, reject_reasons={"syntax": 1, "valence": 1}, conformer_sources=sources)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "shards")


def test_a_good_folder(folder):
    seen: list[tuple[int, int | None]] = []
    found = verify_folder(folder, progress=lambda done, total: seen.append((done, total)))
    assert found.faults == ()
    assert (found.shards, found.molecules) == (3, 55)
    assert found.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert seen == [(min(4 * n, 55), 55) for n in range(1, 15)]


def test_a_good_folder_elsewhere(folder):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/far/shards", recursive=True)
    assert verify_folder("memory://far/shards").faults == ()
    memory.pipe("/far/shards/train-00000.tar", memory.cat("/far/shards/train-00000.tar")[:5000])
    (fault,) = verify_folder("memory://far/shards").faults
    assert "of memory://far/shards/train-00000.tar ends after" in fault
    memory.rm("/far", recursive=True)


def test_everything_that_is_broken_is_named(folder):
    blocks = Manifest.load(folder).shards[0].blocks
    first = bytearray((folder / "train-00000.tar").read_bytes())
    first[blocks[1].offset + 7] ^= 1
    first[blocks[3].offset + 100] ^= 128
    (folder / "train-00000.tar").write_bytes(first)
    (folder / "train-00001.tar").unlink()
    last = bytearray((folder / "val-00000.tar").read_bytes())
    last[-1] = 1
    (folder / "val-00000.tar").write_bytes(last)
    shutil.rmtree(folder / "rejects")
    (folder / "train-00007.tar").write_bytes(b"")
    (folder / ".val-00000.tar.17.tmp").write_bytes(b"")
    faults = verify_folder(folder).faults
    expected = [
        f"block 1 of {folder}/train-00000.tar is damaged: its CRC-32 is not that of the manifest; make this sh",
        f"block 3 of {folder}/train-00000.tar is damaged",
        f"cannot read {folder}/train-00001.tar: ",
        f"{folder}/val-00000.tar does not match its size and SHA-256 in the manifest",
        f"{folder}/rejects/part-00000.parquet lists 0 refused records ({{}}), the ledger has 2 "
        "({'syntax': 1, 'valence': 1})",
        f"{folder}/.val-00000.tar.17.tmp is not in the manifest; delete it",
        f"{folder}/train-00007.tar is not in the manifest; delete it",
    ]
    assert [fault[: len(words)] for fault, words in zip(faults, expected, strict=True)] == expected
    assert not [fault for fault in faults if "\n" in fault]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"read": 58}, ["the ledger of .* does not balance"]),
        ({"written": 54}, ["does not balance", "has 54 molecules written, the shards hold 55"]),
        ({"rejected": 1, "excluded": 1}, ["lists 2 refused records .* the ledger has 1"]),
    ],
)
def test_a_ledger_that_is_wrong(folder, change, words):
    _save(folder, ledger=dataclasses.replace(Manifest.load(folder).ledger, **change))
    faults = verify_folder(folder).faults
    assert len(faults) == len(words)
    for fault, pattern in zip(faults, words, strict=True):
        assert re.search(pattern, fault)


def test_other_reasons_and_other_sources(folder):
    _save(folder, reject_reasons={"syntax": 2}, conformer_sources={"etkdg": 55})
    faults = verify_folder(folder).faults
    assert len(faults) == 2
    assert "name the conformer sources {'etkdg': 43, 'none': 12}, the manifest {'etkdg': 55}" in faults[0]
    assert "lists 2 refused records ({'syntax': 1, 'valence': 1}), the ledger has 2 ({'syntax': 2})" in faults[1]


def test_a_molecule_that_stands_twice(folder):
    manifest = Manifest.load(folder)
    blocks = [read_block(folder, manifest.shards[0], number) for number in range(5)]
    again = pa.RecordBatch.from_arrays(
        [pa.concat_arrays([a.slice(0, 3), b.slice(0, 1)]) for a, b in zip(blocks[1], blocks[0], strict=True)],
        schema=blocks[0].schema,
    )
    entry = write_shard(folder, "train-00000.tar", "train", [blocks[0], again, *blocks[2:]], "zstd")
    _save(folder, shards=(entry, *manifest.shards[1:]))
    (fault,) = verify_folder(folder).faults
    key = blocks[0]["inchikey"][0].as_py()
    assert fault == f"InChIKey {key} stands more than once in {folder}/train-00000.tar; prepare the folder again"


def test_totals_that_do_not_add_up(folder):
    manifest = Manifest.load(folder)
    _save(folder, shards=(dataclasses.replace(manifest.shards[0], molecules=19), *manifest.shards[1:]))
    faults = verify_folder(folder).faults
    assert f"the manifest of {folder} gives train-00000.tar 19 molecules, its blocks 20" in faults[0]
    assert "has 55 molecules written, the shards hold 54" in faults[1]


def test_without_a_manifest_nothing_else_is_said(folder):
    (folder / "manifest.json").write_text("{}")
    (fault,) = verify_folder(folder).faults
    assert "is not a manifest of shards" in fault


@pytest.fixture
def sealed(folder):
    """The same with what it was prepared from, and with digests of all that lies beside the shards."""
    job = {"inputs": [{"name": "in.smi"}], "options": {"seed": 0}, "versions": {"rdkit": "1"}}
    (folder / "job.json").write_text(json.dumps(job))
    _save(folder, options=job["options"], versions=job["versions"], inputs={"in.smi": 57}, files=digests(folder))
    return folder


def test_every_byte_of_the_refused_records_counts(sealed):
    assert verify_folder(sealed) == dataclasses.replace(verify_folder(sealed), faults=(), job_faults=(), unchecked="")
    content = (sealed / REJECTS_NAME).read_bytes()
    for place in range(0, len(content), 97):
        spoilt = bytearray(content)
        spoilt[place] ^= 1
        (sealed / REJECTS_NAME).write_bytes(spoilt)
        (fault,) = verify_folder(sealed).faults
        assert fault == (
            f"{sealed}/{REJECTS_NAME} does not match its SHA-256 in the manifest; make it again with mmsa prepare "
            "--repair"
        )


def test_refused_records_that_are_others_missing_or_too_many(sealed):
    others = [Refused(was.id, was.place, was.reason, "something else") for was in REFUSED]
    write_rejects(sealed / REJECTS_NAME, rejects_table(others).to_batches())
    assert [fault.partition(" does not match")[0] for fault in verify_folder(sealed).faults] == [
        f"{sealed}/{REJECTS_NAME}"
    ]
    (sealed / REJECTS_NAME).rename(sealed / "rejects" / "part-00009.parquet")
    assert [fault.removeprefix(f"{sealed}/") for fault in verify_folder(sealed).faults] == [
        f"{REJECTS_NAME} is missing; make it again with mmsa prepare --repair",
        "rejects/part-00009.parquet is not in the manifest; delete it",
    ]


def test_the_ledger_is_never_to_be_deleted(sealed):
    """Whoever edits the manifest may take its digest away, which the manifest's own does not cover."""
    manifest = Manifest.load(sealed)
    _save(sealed, files={name: digest for name, digest in manifest.files.items() if name != REJECTS_NAME})
    (fault,) = verify_folder(sealed).faults
    assert fault == f"{sealed}/{REJECTS_NAME} has no SHA-256 in the manifest; keep it, adding inputs gives it one"


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("is missing", "is missing")),
        (b"{", ("does not match its SHA-256", "is damaged")),
        (b'{"inputs": [], "options": {}, "versions": {}}', ("does not match its SHA-256", "does not agree with")),
    ],
)
def test_what_a_folder_was_prepared_from(sealed, content, words, older):
    if older:
        _save(sealed, files={})
    assert verify_folder(sealed).job_faults == ()
    if content is None:
        (sealed / "job.json").unlink()
    else:
        (sealed / "job.json").write_bytes(content)
    found = verify_folder(sealed)
    (fault,) = found.job_faults
    assert fault.startswith(f"{sealed}/job.json {words[older]}")
    assert fault.endswith("nothing can be added to them or repaired: for that, prepare all inputs into another folder")
    assert found.faults == (), "the shards can be used"
    assert ("older than digests" in found.unchecked) == older
