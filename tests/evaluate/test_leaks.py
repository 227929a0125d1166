"""Molecules of tasks in shards, and what is said where that cannot be known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mmsa_dist.evaluate import leaks
from mmsa_dist.evaluate.leaks import (
    Leak,
    LeakError,
    NotChecked,
    check_leaks,
    find_leaks,
    look_for_leaks,
    note_on,
    shards_of,
)
from mmsa_dist.evaluate.moleculenet import Task
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData
from mmsa_shards.from_smiles import smiles_to_block, standard_inchikeys
from mmsa_shards.manifest import Ledger, Manifest
from mmsa_shards.options import SmilesOptions
from mmsa_shards.shard import ShardError, write_shard
from tests.fixtures.standardization import DEFAULT

#: What is pre-trained on, in two training shards and one for validation.
SEEN = [["CCO", "c1ccccc1"], ["C[C@H](N)C(=O)O", "CN"], ["CC(=O)Oc1ccccc1C(=O)O"]]


def task_of(*smiles: str, name: str = "mine") -> TaskData:
    return TaskData(Task(name, "regression", "rmse", (name,)), smiles, np.zeros((len(smiles), 1)), ("y",), ())


def split_of(train: list[int], valid: list[int], test: list[int]) -> Split:
    return Split("random", 0, *(np.array(part, dtype=np.int64) for part in (train, valid, test)))


def write_shards(folder: Path, options: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True)
    shards = []
    for number, smiles in enumerate(SEEN):
        blocks = [smiles_to_block([text], SmilesOptions(standardization=DEFAULT)).block for text in smiles]
        split = "val" if number == 2 else "train"
        shards.append(write_shard(folder, f"{split}-{number % 2:05d}.tar", split, blocks, "zstd"))
    options = asdict(DEFAULT) if options is None else options
    Manifest(shards=tuple(shards), ledger=Ledger(5, 5, 0, 0, 0, 0), options=options).save(folder)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "run" / "shards")


@pytest.fixture
def model(tmp_path: Path, shards: Path) -> Path:
    """What there is of a model that leaks are looked for by."""
    folder = tmp_path / "run" / "model"
    folder.mkdir()
    about = {"training": {"data": {"manifest": Manifest.load(shards).digest}}}
    (folder / "config.json").write_text(json.dumps(about))
    (tmp_path / "run" / "config.yaml").write_text("run: {dir: somewhere/else}\n")
    return folder


# Train: ethanol, drawn otherwise, and hexane. Valid: the other alanine. Test: methylamine's salt, what no shard holds,
# aspirin, which is a validation molecule of the pre-training, benzene with an isotope, and what is refused.
DATA = task_of(
    "C(O)C", "CCCCCC", "C[C@@H](N)C(=O)O", "C[NH3+].[Cl-]", "CCCN", "OC(=O)c1ccccc1OC(C)=O", "[2H]c1ccccc1", "*C"
)
SPLIT = split_of([0, 1], [2], [3, 4, 5, 6, 7])


@pytest.mark.parametrize("at_a_time", [1, 2, 1 << 20])
def test_by_hand(shards, monkeypatch, at_a_time):
    monkeypatch.setattr(leaks, "_AT_A_TIME", at_a_time)
    told = []
    (leak,) = find_leaks(shards, [(DATA, SPLIT)], progress=lambda *words: told.append(words))
    assert leak == Leak(
        task="mine",
        which=", seed 0",
        split_digest=SPLIT.digest,
        molecules={"train": 2, "valid": 1, "test": 5},
        seen={"train": 1, "valid": 1, "test": 3},
        refused=1,
        examples=("C[NH3+].[Cl-]", "OC(=O)c1ccccc1OC(C)=O", "[2H]c1ccccc1"),
    )
    assert note_on(leak, leak.which) == (
        "mine, seed 0: 3 of 5 test molecules (60.0 %) were in the pre-training data (1 of 1 valid and 1 of 2 train "
        "molecules), such as `C[NH3+].[Cl-]`, `OC(=O)c1ccccc1OC(C)=O`, `[2H]c1ccccc1`; to remove them, prepare the "
        "shards with --exclude and retrain"
    )
    assert told[-1] == (5, 5)
    assert len(told) == {1: 5, 2: 3, 1 << 20: 1}[at_a_time]


def test_several_tasks_and_splits_at_once(shards):
    other = split_of([3, 4, 5, 6, 7], [0], [1])
    clean = task_of("CCCC", "CCCCC", "CCCCCC", name="clean")
    found = find_leaks(shards, [(DATA, SPLIT), (DATA, other), (clean, split_of([0], [1], [2]))])
    assert [(leak.task, leak.seen["test"]) for leak in found] == [("mine", 3), ("mine", 0), ("clean", 0)]
    assert note_on(found[1], found[1].which) == (
        "mine, seed 0: none of 1 test molecules was in the pre-training data (1 of 1 valid and 3 of 5 train molecules)"
    )


def test_molecules_are_standardized_as_the_shards_were(tmp_path):
    salts = write_shards(tmp_path / "salts", asdict(replace(DEFAULT, salts="keep")))
    (leak,) = find_leaks(salts, [(DATA, SPLIT)])
    assert leak.seen["test"] == 2, "with its counter-ion, methylamine is another molecule"


def test_inchikeys_are_those_of_the_blocks():
    flat = [text for smiles in SEEN for text in smiles]
    block = smiles_to_block(flat, SmilesOptions(standardization=DEFAULT)).block
    assert standard_inchikeys(flat, DEFAULT) == block["inchikey"].to_pylist()
    assert standard_inchikeys(["", "junk", "*"], DEFAULT) == [None] * 3


def test_the_shards_of_a_model_lie_beside_it(model, shards):
    assert shards_of(model) == str(shards)
    found = check_leaks(model, [(DATA, SPLIT)])
    assert not isinstance(found, NotChecked)
    assert found[0].seen["test"] == 3


def test_or_where_its_configuration_says(model, shards, tmp_path):
    moved = shards.rename(tmp_path / "elsewhere")
    (model.parent / "config.yaml").write_text(f"data: {{shards: {moved}}}\n")
    assert shards_of(model) == str(moved)


def test_also_where_the_folder_of_the_model_or_that_of_the_run_is_a_link(model, shards, tmp_path):
    (tmp_path / "big").mkdir()
    weights = model.rename(tmp_path / "big" / "weights")
    model.symlink_to(weights)
    assert shards_of(model) == str(shards)
    (tmp_path / "current").symlink_to(model)
    model.unlink()
    weights.rename(model)
    assert Path(shards_of(tmp_path / "current")).resolve() == shards.resolve()


def reason(model: Path) -> str:
    found = check_leaks(model, [(DATA, SPLIT)])
    assert isinstance(found, NotChecked)
    assert found.sentence.startswith("overlap of test molecules with the pre-training data was not checked, because ")
    return found.reason


def test_what_was_not_checked_is_said(model, shards, tmp_path):
    assert "is not a folder on this machine" in reason(tmp_path / "nowhere")

    digest = Manifest.load(shards).digest
    (model / "config.json").write_text(json.dumps({"training": {"data": {"manifest": "0" * 64}}}))
    assert f"has the digest {digest[:12]}, the training used 000000000000" in reason(model)
    for content in ("{}", "[]", "no", '{"training": {"data": {}}}'):
        (model / "config.json").write_text(content)
        assert "does not say which shards" in reason(model)
    (model / "config.json").write_text(json.dumps({"training": {"data": {"manifest": digest}}}))

    settings = model.parent / "config.yaml"
    settings.write_text("train: {stepz: 1}\n")
    assert "configuration of the run cannot be read" in reason(model)
    settings.unlink()
    assert "is not inside its run folder" in reason(model)
    settings.write_text("{}\n")

    tar = shards / "train-00001.tar"
    at = Manifest.load(shards).split("train")[1].blocks[0].offset + 100
    whole = tar.read_bytes()
    tar.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert "is damaged: its CRC-32" in reason(model)
    tar.unlink()
    assert "cannot read block 0" in reason(model)
    with pytest.raises(ShardError):
        find_leaks(shards, [(DATA, SPLIT)])
    (shards / "manifest.json").unlink()
    assert "the shards of the training cannot be read: no manifest.json" in reason(model)


def test_shards_that_do_not_say_how_they_were_made(tmp_path):
    bare = write_shards(tmp_path / "bare", {"salts": "strip"})
    with pytest.raises(LeakError, match=r"it lacks max_atoms, groups, charges, tautomers, isotopes\)"):
        find_leaks(bare, [(DATA, SPLIT)])


def test_what_a_reader_of_results_is_told(model):
    data, split = task_of("OCC", "CCCC", "CN"), split_of([1], [2], [0])
    found = look_for_leaks(model, [(data, split)])
    (sentence,) = found.sentences
    assert sentence.startswith("mine, seed 0: 1 of 1 test molecules (100.0 %) were in the pre-training data")
    clean = split_of([0], [2], [1])
    found = look_for_leaks(model, [(data, clean), (data, replace(clean, seed=1))])
    assert found.sentences == (
        "mine, seed 0, seed 1: none of 1 test molecules was in the pre-training data (1 of 1 valid and 1 of 1 train "
        "molecules)",
    )
    about = json.loads(json.dumps(found.facts))["leaks"]
    assert about["checked"]
    assert [of["seen"] for of in about["splits"]] == [{"train": 1, "valid": 1, "test": 0}] * 2
    unknown = look_for_leaks(model / "nowhere", [(data, split)])
    assert "was not checked, because" in unknown.sentences[0]
    assert unknown.facts["leaks"]["checked"] is False
