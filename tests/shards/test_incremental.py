"""Adding to a folder of shards: only the shards that new molecules belong to change, and the end is the same."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from mmsa_shards.changes import changes_between
from mmsa_shards.errors import PrepareError
from mmsa_shards.manifest import Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.prepare import prepare
from mmsa_shards.rejects import read_rejects
from mmsa_shards.repair import repair
from mmsa_shards.shard import read_shard

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def chosen(options) -> PrepareOptions:
    return dataclasses.replace(options, conformers="etkdg", shards=6, molecules_per_block=4, workers=2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    """Alcohols; later amines, among them an alcohol again and something that is no molecule, and 3D of two alcohols."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "old.smi").write_text("\n".join([*(f"{'C' * n}O b{n}" for n in range(1, 30)), "c1cccc1 old-bad"]))
    (folder / "new.smi").write_text("CCN n1\nCCCN n2\nOCC a2\nC(C)(C)(C)(C)C new-bad")
    with Chem.SDWriter(str(folder / "new.sdf")) as writer:
        for smiles, name in (("CCCO", "solid"), ("CC(F)O", "CID7")):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            rdDistGeom.EmbedMolecule(mol, randomSeed=1)
            mol.SetProp("_Name", name)
            writer.write(mol)
    return [str(folder / name) for name in ("old.smi", "new.smi", "new.sdf")]


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.fixture(scope="module")
def at_once(inputs, chosen, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("once") / "shards"
    prepare(inputs, str(folder), chosen)
    return folder


@pytest.fixture(scope="module")
def before(inputs, chosen, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("before") / "shards"
    prepare(inputs[:1], str(folder), chosen)
    return folder


@pytest.fixture
def folder(before, tmp_path) -> Path:
    """A folder prepared from the first input."""
    return Path(shutil.copytree(before, tmp_path / "shards"))


def test_what_is_added_gives_what_all_at_once_gives(folder, at_once, inputs, chosen):
    old, held = Manifest.load(folder), tars(folder)
    inodes = {path.name: path.stat().st_ino for path in folder.glob("*.tar")}
    manifest = prepare(inputs[1:], str(folder), chosen)
    assert tars(folder) == tars(at_once)
    assert manifest.digest == Manifest.load(at_once).digest
    assert read_rejects(folder).equals(read_rejects(at_once))
    assert manifest.ledger.read == 30 + 4 + 2
    for shard in manifest.shards:
        list(read_shard(folder, shard))
    same = {name for name, content in held.items() if tars(folder)[name] == content}
    assert same  # four molecules in seven shards
    assert all((folder / name).stat().st_ino == inodes[name] for name in same), "a shard was written for nothing"

    changes = changes_between(old, manifest)
    assert {shard.name for shard in changes.same} == same
    assert changes.molecules == 3
    assert changes.inputs == {"new.smi": 4, "new.sdf": 2}
    assert changes_between(Manifest.load_file(folder / "manifests" / f"{old.digest[:12]}.json"), manifest) == changes


def test_inputs_that_were_named_before_are_not_read_again(folder, at_once, inputs, chosen):
    read = []
    manifest = prepare(inputs, str(folder), chosen, progress=lambda *call: read.append(call))
    assert manifest.digest == Manifest.load(at_once).digest
    assert max(done for stage, done, _, _ in read if stage == "read") == 4 + 2
    assert max(done for stage, done, _, _ in read if stage == "build") < 10


def test_in_instalments_of_any_order(inputs, chosen, at_once, tmp_path):
    assert prepare(inputs[2:], str(tmp_path / "out"), chosen).ledger.read == 2
    prepare(inputs[:1], str(tmp_path / "out"), chosen)
    manifest = prepare(inputs[1:2], str(tmp_path / "out"), chosen)
    # How many shards there are for validation was decided by what came first; of training there are as many as asked.
    train = {name: content for name, content in tars(at_once).items() if name.startswith("train")}
    assert {name: content for name, content in tars(tmp_path / "out").items() if name.startswith("train")} == train
    assert manifest.ledger == Manifest.load(at_once).ledger


@pytest.mark.parametrize("moved", [0, 1, 3])
def test_publishing_that_was_stopped_is_finished(folder, at_once, inputs, chosen, monkeypatch, moved):
    import mmsa_shards.publish

    publish, count = mmsa_shards.publish.publish_shard, []

    def stop(*arguments):
        if len(count) == moved:
            raise KeyboardInterrupt
        count.append(arguments)
        publish(*arguments)

    monkeypatch.setattr("mmsa_shards.publish.publish_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(inputs, str(folder), chosen)
    monkeypatch.undo()
    assert (folder / ".work" / "manifest.json").exists()
    # Even the job of before first finishes what was ready.
    assert prepare(inputs[:1], str(folder), chosen).digest == Manifest.load(at_once).digest
    assert tars(folder) == tars(at_once)
    assert not (folder / ".work").exists()


def test_what_cannot_be_added_leaves_the_folder_as_it_was(folder, inputs, chosen, tmp_path):
    held = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (tmp_path / "cut.sdf").write_text(Path(inputs[2]).read_text()[:700])
    for changes, paths, message in [
        ({"seed": 3}, inputs, "seed was 0, now 3"),
        ({}, [*inputs, str(tmp_path / "nowhere.smi")], "does not exist"),
        ({}, [*inputs, str(tmp_path / "cut.sdf")], "ends in the middle"),
    ]:
        with pytest.raises(PrepareError, match=message):
            prepare(paths, str(folder), dataclasses.replace(chosen, **changes))
        now = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".work" not in path.parts}
        assert now == held


def test_a_truncated_input_is_taken_once_it_is_allowed(folder, inputs, chosen, tmp_path):
    whole, cut = inputs[1], str(tmp_path / "cut.sdf")
    Path(cut).write_text(Path(inputs[2]).read_text()[:-40])
    with pytest.raises(PrepareError, match=r"cut\.sdf ends in the middle .* prepare\.allow_truncated=true"):
        prepare([whole, cut], str(folder), chosen)
    read = {path: path.stat().st_mtime_ns for path in (folder / ".work" / "catalog").rglob("*.arrow")}
    assert read, "what could be read is kept"
    allowed, kept = dataclasses.replace(chosen, allow_truncated=True), []

    def watch(stage: str, *numbers: object) -> None:
        if stage == "build" and not kept:
            kept.append({path: path.stat().st_mtime_ns for path in read})

    manifest = prepare([whole, cut], str(folder), allowed, progress=watch)
    assert kept == [read]
    assert manifest.reject_reasons["truncated_file"] == 1
    assert [r["file"] for r in read_rejects(folder).to_pylist() if r["reason"] == "truncated_file"] == ["cut.sdf"]
    # Neither what follows nor a repair need allow it again.
    assert prepare([whole, cut], str(folder), chosen) == manifest
    name = manifest.shards[0].name
    (folder / name).unlink()
    assert repair(str(folder), chosen) == (name,)


def test_shards_that_become_far_larger_than_asked_are_told_and_absurd_ones_refused(options, tmp_path):
    """How many shards there are was decided by the first inputs."""
    for name, numbers in {"few": range(1, 31), "more": range(31, 61), "many": range(61, 400)}.items():
        (tmp_path / f"{name}.smi").write_text("\n".join(f"{'C' * n}O {n}" for n in numbers))
    out, said = tmp_path / "out", []
    small = dataclasses.replace(options, val_fraction=0, molecules_per_shard=30)
    prepare([str(tmp_path / "few.smi")], str(out), small, say=said.append)
    assert said == []
    prepare([str(tmp_path / "more.smi")], str(out), small, say=said.append)
    (words,) = said
    assert re.search(
        r"out has 1 intervals for train, .* about 60 molecules in each, 2 times prepare\.molecules_per_shard=30; "
        r"for smaller shards, prepare all inputs into another folder, with prepare\.shards set",
        words,
    )
    held = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(PrepareError, match=r"about 399 molecules in each, 13 times .* into another folder"):
        prepare([str(tmp_path / "many.smi")], str(out), small)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and ".work" not in p.parts} == held
    # What was refused is in the way of nothing.
    (tmp_path / "another.smi").write_text("CCN n")
    assert prepare([str(tmp_path / "another.smi")], str(out), small).ledger.written == 61


def test_whoever_names_the_number_of_shards_wants_it(options, tmp_path):
    for name, numbers in {"few": range(1, 4), "many": range(4, 100)}.items():
        (tmp_path / f"{name}.smi").write_text("\n".join(f"{'C' * n}O {n}" for n in numbers))
    named, said = dataclasses.replace(options, val_fraction=0, molecules_per_shard=3, shards=2), []
    for name in ("few", "many"):
        prepare([str(tmp_path / f"{name}.smi")], str(tmp_path / "out"), named, say=said.append)
    assert said == []


def test_shards_of_another_schema_are_refused(folder, inputs, chosen):
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**data, "schema_version": 0}))
    with pytest.raises(ValueError, match=r"block schema 0.* prepare the shards again"):
        prepare(inputs, str(folder), chosen)
