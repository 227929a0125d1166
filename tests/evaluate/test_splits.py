"""Splits: by hand, and equal to the published ones."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from mmsa_dist.evaluate import TASKS, load_task, make_split
from mmsa_dist.evaluate.moleculenet import Task
from mmsa_dist.evaluate.splits import PARTS, Split, random_split, scaffold_split
from mmsa_dist.evaluate.tasks import TaskData


def task_of(smiles: list[str], *, canonical: bool = False) -> TaskData:
    task = Task("mine", "regression", "rmse", ("mine",), canonical_scaffold=canonical)
    return TaskData(task, tuple(smiles), np.zeros((len(smiles), 1)), ("y",), ())


def test_scaffold_split_by_hand():
    # Groups by scaffold: benzene 0 1 2 3 (4), none 4 5 (2), cyclohexane 6 (1), pyridine 7 (1), furan 8, thiophene 9.
    smiles = ["c1ccccc1", "Cc1ccccc1", "CCc1ccccc1", "Oc1ccccc1", "CC", "CCO", "C1CCCCC1", "c1ccncc1", "c1ccoc1"]
    smiles.append("c1ccsc1")
    train, valid, test = scaffold_split(smiles)
    # 8 may train: benzene and none make 6; then, of single molecules, the last comes first: 9, 8 train, 7 validates.
    assert train.tolist() == [0, 1, 2, 3, 4, 5, 9, 8]
    assert valid.tolist() == [7]
    assert test.tolist() == [6]


def test_a_group_too_large_for_train_goes_on():
    smiles = ["c1ccccc1"] * 9 + ["C1CCCCC1"]
    train, valid, test = scaffold_split(smiles)
    assert (train.tolist(), valid.tolist(), test.tolist()) == ([9], list(range(9)), [])


def test_chirality_divides_scaffolds():
    hand = ["O[C@H]1CCO[C@@H]2CCOC12", "O[C@H]1CCO[C@H]2CCOC12"]
    sets = [set(part.tolist()) for part in scaffold_split([*hand, *["C"] * 8])]
    assert {0, 1} <= set.union(*sets)
    assert not any({0, 1} <= part for part in sets), "mirror images have scaffolds of their own"


@pytest.mark.parametrize("name", ["bbbp", "sider", "esol", "tox21", "lipophilicity"])
def test_equals_the_published_algorithm(shared_data, name):
    data = load_task(name, shared_data / "moleculenet")
    oracle = json.loads(gzip.decompress((shared_data / "oracles" / "splits" / f"{name}.json.gz").read_bytes()))
    assert [row for row, _ in data.dropped] == oracle["dropped_rows"]
    split = make_split(data, "hu-scaffold")
    for part in PARTS:
        assert getattr(split, part).tolist() == oracle[part]


@pytest.mark.parametrize(("name", "folder"), [("bbbp", "ogbg_molbbbp"), ("esol", "ogbg_molesol")])
def test_equals_the_official_sets_of_ogb(shared_data, name, folder):
    split = make_split(load_task(name, shared_data / "moleculenet"), "ogb-scaffold")
    for part in PARTS:
        path = shared_data / "oracles" / "ogb" / folder / "split" / "scaffold" / f"{part}.csv.gz"
        assert set(getattr(split, part).tolist()) == set(map(int, gzip.decompress(path.read_bytes()).split()))


def test_freesolv_is_split_without_any_folder():
    data = load_task("freesolv")
    split = make_split(data, "hu-scaffold")
    assert [len(getattr(split, part)) for part in PARTS] == [513, 64, 65]
    assert split.digest == make_split(data, "ogb-scaffold").digest


def test_a_random_split_is_one_of_the_seed():
    parts = random_split(101, seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(101))
    assert [len(part) for part in parts] == [80, 10, 11]
    assert all(np.array_equal(a, b) for a, b in zip(parts, random_split(101, seed=3), strict=True))
    data = task_of(["C"] * 101)
    assert make_split(data, "random", 3).digest != make_split(data, "random", 4).digest
    assert (make_split(data, "random", 3).seed, make_split(task_of(["C"] * 9 + ["c1ccccc1"]), "random", 0).seed) == (
        3,
        0,
    )


def test_the_digest_is_of_sets():
    a, b = (Split("random", 0, np.array(order), np.array([2]), np.array([3])) for order in ([0, 1], [1, 0]))
    assert a.digest == b.digest
    assert a.digest != Split("random", 0, np.array([0, 2]), np.array([1]), np.array([3])).digest


def test_a_split_is_published_as_a_file(tmp_path):
    data = task_of(["C", "CC", "CCC", "c1ccccc1", "C1CCCCC1", "CO", "CN", "CCN", "CCO", "CCCC"])
    split = make_split(data, "random", 1)
    written = json.loads(split.write(tmp_path, data).read_text())
    assert (tmp_path / "mine-random-seed1.json").is_file()
    assert written["digest"] == split.digest
    assert written["test"] == split.test.tolist()
    assert written["smiles"] == list(data.smiles)


def test_the_sets_that_hu_et_al_canonicalize():
    assert [name for name, task in TASKS.items() if task.canonical_scaffold] == ["bbbp", "toxcast", "clintox"]


def test_what_cannot_be_split_is_said():
    with pytest.raises(ValueError, match="no split 'scaffold'; known: hu-scaffold, ogb-scaffold, random"):
        make_split(task_of(["C"] * 10), "scaffold")
    with pytest.raises(ValueError, match="leaves valid empty"):
        make_split(task_of(["C"] * 3), "random")
