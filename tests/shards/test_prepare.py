"""Preparation as a whole, on a local Ray: what it makes, that it is deterministic, resumable and accountable."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdDistGeom

import mmsa_shards.build
from mmsa_dist.data.loader import BlockReader
from mmsa_shards.build import build_piece, how_many_made
from mmsa_shards.descriptors import compute_descriptors
from mmsa_shards.errors import PrepareError
from mmsa_shards.manifest import Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.prepare import prepare
from mmsa_shards.rejects import read_rejects
from mmsa_shards.schema import BLOCK_SCHEMA
from mmsa_shards.shard import read_block, read_shard

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("local_ray")]

ALCOHOLS = ["C" * n + "O" for n in range(1, 40)]
STEREOISOMERS = ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "CC(N)C(=O)O"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "a.smi").write_text("\n".join(f"{s} a{n}" for n, s in enumerate([*ALCOHOLS, *STEREOISOMERS])))
    rows = ["smiles,id", "OC,methanol", "CCO,ethanol", "c1cccc1,bad", ",missing", "C[NH3+].[Cl-],salt"]
    (folder / "b.csv").write_text("\n".join(rows))
    mol = Chem.AddHs(Chem.MolFromSmiles("OCC"))
    rdDistGeom.EmbedMultipleConfs(mol, 2, randomSeed=1)
    with Chem.SDWriter(str(folder / "c.sdf")) as writer:
        for conformer in mol.GetConformers():
            writer.write(mol, confId=conformer.GetId())
    return [str(folder / name) for name in ("a.smi", "b.csv", "c.sdf")]


def molecules(folder: Path, split: str) -> list[dict]:
    shards = Manifest.load(folder).split(split)
    blocks = [read_block(folder, shard, number) for shard in shards for number in range(len(shard.blocks))]
    assert all(block.schema.equals(BLOCK_SCHEMA) for block in blocks)
    return [row for block in blocks for row in block.to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.suffix in (".tar", ".parquet")
    }


@pytest.fixture(scope="module")
def prepared(inputs, options, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "shards"
    prepare(inputs, str(folder), dataclasses.replace(options, conformers="etkdg", shards=3))
    return folder


def test_blocks_keep_descriptors_where_they_are_asked_for(inputs, options, prepared, tmp_path):
    prepare(inputs[:1], str(tmp_path / "out"), dataclasses.replace(options, descriptors=True))
    rows = molecules(tmp_path / "out", "train")
    for row in rows:
        np.testing.assert_array_equal(row["descriptors"], compute_descriptors(Chem.MolFromSmiles(row["smiles"])))
    reader = BlockReader(str(tmp_path / "out"), "train")
    np.testing.assert_array_equal(reader.descriptors_of_some().numpy(), [row["descriptors"] for row in rows])
    assert all(row["descriptors"] == [] for row in molecules(prepared, "train"))


def test_the_ledger_accounts_for_every_record(prepared):
    ledger = Manifest.load(prepared).ledger
    assert ledger.read == 39 + 3 + 5 + 2
    assert ledger.duplicates == 1 + 1 + 2  # methanol; ethanol, whose SDF records are two more
    assert ledger.rejected == 2
    assert ledger.balances
    rejects = read_rejects(prepared).to_pylist()
    assert [(r["id"], r["file"], r["number"], r["reason"]) for r in rejects] == [
        ("bad", "b.csv", 4, "aromaticity"),
        ("missing", "b.csv", 5, "empty"),
    ]


def test_every_molecule_is_there_once_and_complete(prepared):
    rows = molecules(prepared, "train") + molecules(prepared, "val")
    assert {row["smiles"] for row in rows} == {*ALCOHOLS, *STEREOISOMERS, "CN"}
    assert len({row["inchikey"] for row in rows}) == len(rows) == Manifest.load(prepared).ledger.written
    for row in rows:
        num_atoms = Chem.MolFromSmiles(row["smiles"]).GetNumAtoms()
        assert len(row["atoms"]) == len(row["xy"]) == num_atoms
        assert len(row["bonds"]) == len(row["bond_ends"]) == num_atoms - 1
        assert [len(conformer) for conformer in row["conformers"]] == [num_atoms]


def test_given_coordinates_are_taken_and_the_rest_embedded(prepared):
    rows = molecules(prepared, "train") + molecules(prepared, "val")
    sources = {row["smiles"]: row["conformer_source"] for row in rows}
    assert Counter(sources.values()) == {"input": 1, "etkdg": len(rows) - 1}
    assert sources["CCO"] == "input"
    assert Manifest.load(prepared).conformer_sources == {"input": 1, "etkdg": len(rows) - 1}


def test_stereoisomers_are_in_one_split(prepared):
    splits = [{row["inchikey"][:14] for row in molecules(prepared, split)} for split in ("train", "val")]
    assert splits[0]
    assert splits[1]
    assert not splits[0] & splits[1]


def test_plain_webdataset_opens_every_shard(prepared):
    webdataset = pytest.importorskip("webdataset")
    paths = sorted(map(str, prepared.glob("*.tar")))
    assert len(paths) == 4
    samples = [sample for path in paths for sample in webdataset.WebDataset(path, shardshuffle=False)]
    rows = sum(pa.ipc.open_stream(sample["arrow"]).read_next_batch().num_rows for sample in samples)
    assert rows == Manifest.load(prepared).ledger.written
    for shard in Manifest.load(prepared).shards:
        list(read_shard(prepared, shard))


def test_workers_and_the_order_of_inputs_change_nothing(prepared, inputs, options, tmp_path):
    other = dataclasses.replace(options, conformers="etkdg", shards=3, workers=2)
    manifest = prepare(inputs[::-1], str(tmp_path / "out"), other)
    assert contents(tmp_path / "out") == contents(prepared)
    assert manifest.digest == Manifest.load(prepared).digest


def test_what_is_done_is_not_done_again(prepared, inputs, options):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    same = dataclasses.replace(options, conformers="etkdg", shards=3, workers=2)
    calls = []
    assert prepare(inputs, str(prepared), same, progress=lambda *a: calls.append(a)) == Manifest.load(prepared)
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before
    assert calls == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": 5}, "seed was 0, now 5"), ({"conformers": "none"}, "conformers was 'etkdg', now 'none'")],
)
def test_a_folder_made_otherwise_is_refused(prepared, inputs, options, changes, message):
    other = dataclasses.replace(options, **({"conformers": "etkdg", "shards": 3} | changes))
    with pytest.raises(PrepareError, match=message):
        prepare(inputs, str(prepared), other)


@pytest.mark.parametrize("stage", ["read", "build"])
def test_a_job_that_was_stopped_goes_on(prepared, inputs, options, tmp_path, stage):
    class Stopped(Exception):
        pass

    def stop(at: str, done: int, total: int | None, rejected: int) -> None:
        if at == stage and done > 0:
            raise Stopped

    folder = tmp_path / "out"
    same = dataclasses.replace(options, conformers="etkdg", shards=3)
    with pytest.raises(Stopped):
        prepare(inputs, str(folder), same, progress=stop)
    assert not (folder / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (folder / ".work").rglob("*.arrow")}
    assert kept
    calls: list[tuple] = []

    def watch(*call: object) -> None:
        calls.append(call)
        if call[0] == "build":
            assert {path: path.stat().st_mtime_ns for path in kept} == kept

    prepare(inputs, str(folder), same, progress=watch)
    assert contents(folder) == contents(prepared)
    assert not (folder / ".work").exists()
    assert [call[:3] for call in calls if call[0] == "build"][-1] == ("build", 43, 43)
    assert calls[-1][:3] == ("write", 4, 4)


def test_excluded_molecules_do_not_enter_whatever_their_stereo(inputs, options, tmp_path):
    (tmp_path / "benchmark.csv").write_text("smiles\nC[C@H](N)C(=O)O\nCCCO\n")
    without = dataclasses.replace(options, exclude=(str(tmp_path / "benchmark.csv"),))
    manifest = prepare(inputs, str(tmp_path / "out"), without)
    assert manifest.ledger.excluded == 4
    assert manifest.ledger.balances
    smiles = {row["smiles"] for split in ("train", "val") for row in molecules(tmp_path / "out", split)}
    assert smiles == {*ALCOHOLS, "CN"} - {"CCCO"}


def test_conformers_of_duplicates_are_pooled(inputs, options, tmp_path):
    three = dataclasses.replace(options, conformers="given", conformers_per_molecule=3)
    prepare(inputs, str(tmp_path / "out"), three)
    rows = [row for split in ("train", "val") for row in molecules(tmp_path / "out", split)]
    counts = {row["smiles"]: len(row["conformers"]) for row in rows}
    assert counts.pop("CCO") == 2
    assert set(counts.values()) == {0}
    assert {row["conformer_source"] for row in rows if row["smiles"] != "CCO"} == {"none"}
    (ethanol,) = [row for row in rows if row["smiles"] == "CCO"]
    xyz = np.cumsum(ethanol["conformers"], axis=1) / 1000
    assert np.linalg.norm(xyz[:, 0] - xyz[:, 1], axis=-1) == pytest.approx([1.5, 1.5], abs=0.1)  # C-C
    assert np.linalg.norm(xyz[:, 1] - xyz[:, 2], axis=-1) == pytest.approx([1.4, 1.4], abs=0.1)  # C-O


def test_every_input_that_cannot_be_used_is_named_and_the_others_are_kept(inputs, options, tmp_path):
    (tmp_path / "cut.sdf").write_text(Path(inputs[2]).read_text()[:700])
    (tmp_path / "table.csv").write_text("name,mass\naspirin,180\n")
    broken = [str(tmp_path / "cut.sdf"), str(tmp_path / "table.csv")]
    with pytest.raises(
        PrepareError, match=r"cut\.sdf ends in the middle(.|\n)*table\.csv has no SMILES column"
    ) as told:
        prepare([*inputs, *broken], str(tmp_path / "out"), options)
    assert len(str(told.value).splitlines()) == 2
    (tmp_path / "table.csv").write_text("name,smiles\nwater,O\n")
    read = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / ".work" / "catalog").rglob("*.arrow")}
    assert read
    stages = []

    def watch(stage: str, *numbers: object) -> None:
        if stage == "build" and not stages:
            assert {path: path.stat().st_mtime_ns for path in read} == read
            stages.append(stage)

    manifest = prepare([*inputs, broken[1]], str(tmp_path / "out"), options, progress=watch)
    assert stages
    assert manifest.inputs == {"a.smi": 42, "b.csv": 5, "c.sdf": 2, "table.csv": 1}


def write_compound(folder: Path, flat: str, solid: str) -> Chem.Mol:
    """Writes the 2D and the 3D record of one CID as PubChem does, and returns the latter."""
    mols = [Chem.MolFromSmiles(flat), Chem.AddHs(Chem.MolFromSmiles(solid))]
    rdDistGeom.EmbedMolecule(mols[1], randomSeed=1)
    for mol, name, tags in zip(mols, ("2d.sdf", "3d.sdf"), ({}, {"PUBCHEM_CONFORMER_RMSD": "0.4"}), strict=True):
        for tag, value in {"PUBCHEM_COMPOUND_CID": "602", **tags}.items():
            mol.SetProp(tag, value)
        with Chem.SDWriter(str(folder / name)) as writer:
            writer.write(mol)
    return mols[1]


@pytest.mark.parametrize(
    ("flat", "solid", "written"),
    [
        ("O=c1cc[nH]cc1", "Oc1ccncc1", 1),  # tautomers, one InChIKey: duplicates, of which the one with 3D stays
        ("C[C@@H](N)C(=O)O", "C[C@H](N)C(=O)O", 2),  # stereo that contradicts
        ("CCO", "CCN", 2),  # two skeletons
    ],
)
@pytest.mark.parametrize("shards", [1, 5])
def test_only_coordinates_that_are_used_count_as_joined(options, tmp_path, flat, solid, written, shards):
    write_compound(tmp_path, flat, solid)
    given = dataclasses.replace(options, conformers="given", shards=shards, val_fraction=0)
    manifest = prepare([str(tmp_path / "2d.sdf"), str(tmp_path / "3d.sdf")], str(tmp_path / "out"), given)
    ledger = manifest.ledger
    assert (ledger.written, ledger.joined, ledger.duplicates) == (written, 0, 2 - written)
    rows = molecules(tmp_path / "out", "train")
    assert {row["smiles"] for row in rows} == {flat, solid} if written == 2 else {solid}
    assert manifest.conformer_sources["pubchem3d"] == 1


def test_pubchem3d_is_joined_to_its_compound(options, tmp_path):
    solid = write_compound(tmp_path, "CC(N)C(=O)O", "C[C@H](N)C(=O)O")
    given = dataclasses.replace(options, conformers="given")
    manifest = prepare([str(tmp_path / "2d.sdf"), str(tmp_path / "3d.sdf")], str(tmp_path / "out"), given)
    assert (manifest.ledger.read, manifest.ledger.written, manifest.ledger.joined) == (2, 1, 1)
    (row,) = molecules(tmp_path / "out", "train") + molecules(tmp_path / "out", "val")
    assert (row["id"], row["smiles"], row["conformer_source"]) == ("CID602", "CC(N)C(=O)O", "pubchem3d")
    xyz = np.cumsum(row["conformers"][0], axis=0) / 1000
    heavy = solid.GetConformer().GetPositions()[: solid.GetNumHeavyAtoms()]  # in the order of its SMILES, as here
    distances = [np.linalg.norm(places[:, None] - places, axis=-1) for places in (xyz, heavy)]
    np.testing.assert_allclose(*distances, atol=0.002)


def test_what_standardization_did_is_counted(options, tmp_path):
    (tmp_path / "a.smi").write_text("C[NH3+].[Cl-] salt\nCC(=O)[O-].[Na+] another\nCCO none\nCC(=O)O twin")
    manifest = prepare([str(tmp_path / "a.smi")], str(tmp_path / "out"), options)
    assert manifest.ledger.duplicates == 1
    assert manifest.standardization == {"fragment_removed": 2, "neutralized": 2}


def test_inputs_that_cannot_be_used_are_one_sentence_and_leave_nothing(inputs, options, tmp_path):
    (tmp_path / "empty.smi").touch()
    (tmp_path / "blank.smi").write_text("\n\n")
    (tmp_path / "bad.smi").write_text("xx\nyy\n")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("precious")
    out = str(tmp_path / "out")
    for paths, folder, message in [
        ([], out, "no input was named"),
        ([str(tmp_path / "nowhere.smi")], out, "nowhere.smi does not exist"),
        ([str(tmp_path / "empty.smi")], out, "empty.smi is empty"),
        ([str(tmp_path / "thesis.tex")], out, "no kind that can be read"),
        ([str(tmp_path / "used")], out, "used matches no file that can be read"),
        ([str(tmp_path / "*.sdf")], out, "sdf matches no file that can be read"),
        ([inputs[0], inputs[0]], out, "named twice"),
        ([str(tmp_path / "blank.smi")], out + "1", "holds no records"),
        ([str(tmp_path / "bad.smi")], out + "2", r"none of the 2 records .* \{'syntax': 2\}"),
        (inputs, str(tmp_path / "used"), "not empty and holds no preparation"),
        (inputs, str(tmp_path / "empty.smi" / "out"), "cannot write to"),
    ]:
        with pytest.raises(PrepareError, match=message):
            prepare(paths, folder, options)
        assert not (Path(folder) / "manifest.json").is_file()
        assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize("chain", ["", "simplecache::"])
def test_what_is_in_the_memory_of_one_process_is_refused(inputs, options, tmp_path, chain):
    with fsspec.open("memory://molecules/a.smi", "wb") as file:
        file.write(b"CCO")
    with_work = dataclasses.replace(options, work_dir=str(tmp_path / "work"))
    out = f"{chain}memory://shards"
    with pytest.raises(PrepareError, match=r"memory://.*shards is in the memory of one process.* on a disk"):
        prepare(inputs, out, with_work)
    for path in (f"{chain}memory://molecules/a.smi", *([] if chain else ["memory://molecules"])):
        with pytest.raises(
            PrepareError, match=r"input .*memory://.*a\.smi is in the memory of one process.* on a disk"
        ):
            prepare([path], str(tmp_path / "out"), options)
    assert not list(tmp_path.iterdir())


def test_a_piece_tells_how_far_it_is_and_is_made_as_it_would_be_at_once(inputs, options, tmp_path, monkeypatch):
    monkeypatch.setattr("mmsa_shards.prepare.ray_pool", lambda *_: contextlib.nullcontext(_HerePool()))
    told: list[int] = []
    make = mmsa_shards.build.make_molecules

    def watched(orders, *arguments, **more):
        made = make(orders, *arguments, **more)
        told.extend(how_many_made(path) for path in (tmp_path / "out" / ".work" / "making").iterdir())
        return made

    one = dataclasses.replace(options, val_fraction=0)
    prepare(inputs, str(tmp_path / "whole"), one)
    monkeypatch.setattr("mmsa_shards.build._MOLECULES_PER_REPORT", 10)
    monkeypatch.setattr("mmsa_shards.build.make_molecules", watched)
    calls = []
    prepare(inputs, str(tmp_path / "out"), one, progress=lambda *call: calls.append(call))
    assert told == [10, 20, 30, 10]  # pieces of 32 and 11
    assert [done for stage, done, _, _ in calls if stage == "build"] == [0, 32, 43]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_driver_tells_what_is_being_made(inputs, options, tmp_path, monkeypatch):
    class Beating(_HerePool):
        def map(self, function, calls, *, gpus=0, heartbeat=None):
            for call in calls:
                if function is build_piece:
                    call[4].write_text("7")
                    heartbeat()
                yield function(*call)

    monkeypatch.setattr("mmsa_shards.prepare.ray_pool", lambda *_: contextlib.nullcontext(Beating()))
    calls = []
    one = dataclasses.replace(options, val_fraction=0)
    prepare(inputs, str(tmp_path / "out"), one, progress=lambda *call: calls.append(call))
    assert [done for stage, done, _, _ in calls if stage == "build"] == [0, 7, 32, 39, 43]


def test_a_folder_in_which_a_job_failed_can_be_used_again(inputs, options, tmp_path):
    (tmp_path / "bad.smi").write_text("xx\n")
    with pytest.raises(PrepareError, match="none of the 1 records"):
        prepare([str(tmp_path / "bad.smi")], str(tmp_path / "out"), options)
    (tmp_path / "bad.smi").write_text("CC\n")
    assert prepare([str(tmp_path / "bad.smi")], str(tmp_path / "out"), options).ledger.written == 1


def test_malformed_files_cost_only_their_bad_records(shared_data, options, tmp_path):
    folder = shared_data / "malformed"
    names = [p.name for p in sorted(folder.iterdir())]
    unusable = {"indigo_invalid.csv.gz", "rdkit_empty.smi"}  # no SMILES column; no record
    kinds = (".smi", ".sdf", ".csv", ".mol", ".mdl")
    paths = [str(folder / n) for n in names if n.removesuffix(".gz").endswith(kinds) and n not in unusable]
    assert len(paths) > 30
    manifest = prepare(paths, str(tmp_path / "out"), dataclasses.replace(options, allow_truncated=True))
    assert manifest.ledger.balances
    assert manifest.ledger.written > 1500
    assert manifest.reject_reasons["truncated_file"] == 3
    rejects = read_rejects(tmp_path / "out").to_pylist()
    bad = [(row["number"], row["reason"]) for row in rejects if row["file"] == "rdkit_good_bad_good_good.sdf"]
    assert bad == [(2, "valence")]
    with pytest.raises(PrepareError, match=r"ends in the middle.*allow_truncated"):
        prepare(paths, str(tmp_path / "strict"), options)


class _HerePool:
    """Runs tasks in this process, so that hypothesis can try many inputs in little time."""

    workers = 1

    def check_that_all_see(self, folder):
        assert folder.is_dir()

    def share(self, value):
        return value

    def map(self, function, calls, *, gpus=0, heartbeat=None):
        for call in calls:
            yield function(*call)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.sampled_from(
            ["CCO", "OCC\ta", "C", "xx", "C*", "N[C@@H](C)F", "NC(C)F b", "CO.Cl", "c1cccc1", "\tid alone", "", " \t"]
        ),
        min_size=1,
    ),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    size=st.integers(1, 4),
    shards=st.integers(0, 3),
    excluded=st.booleans(),
)
def test_the_ledger_balances_for_any_records(lines, end, size, shards, excluded, options, tmp_path, monkeypatch):
    monkeypatch.setattr("mmsa_shards.prepare.ray_pool", lambda *_: contextlib.nullcontext(_HerePool()))
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "a.smi").write_bytes(end.join([*lines, ""]).encode())
    (tmp_path / "x.smi").write_text("OCC")
    exclude = (str(tmp_path / "x.smi"),) if excluded else ()
    chosen: PrepareOptions = dataclasses.replace(options, molecules_per_block=size, shards=shards, exclude=exclude)
    good = {"CCO": "CCO", "OCC": "CCO", "C": "C", "N[C@@H](C)F": 1, "NC(C)F": 2, "CO.Cl": "CO"}
    records = [line.split()[0] if line[0] != "\t" else "" for line in lines if line.strip()]
    expected = {good[smiles] for smiles in records if smiles in good} - ({"CCO"} if excluded else set())
    if not expected:
        with pytest.raises(PrepareError, match="can be used" if records else "holds no records"):
            prepare([str(tmp_path / "a.smi")], str(tmp_path / "out"), chosen)
        return
    manifest = prepare([str(tmp_path / "a.smi")], str(tmp_path / "out"), chosen)
    assert manifest.ledger.balances
    assert manifest.ledger.written == len(expected) == manifest.molecules("train") + manifest.molecules("val")
    assert manifest.ledger.read == len(records)
    refused = sum(smiles not in good for smiles in records)
    assert manifest.ledger.rejected == refused == sum(manifest.reject_reasons.values())
