"""Splits read from files: our own, OGB's, others'; and what is said of files that do not fit."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmsa_dist.evaluate import choose_split, load_task, make_split
from mmsa_dist.evaluate.moleculenet import Task
from mmsa_dist.evaluate.notes import notes_on
from mmsa_dist.evaluate.split_files import SplitError, load_split
from mmsa_dist.evaluate.splits import PARTS, Split
from mmsa_dist.evaluate.tasks import TaskData

CHAINS = ["C" * n for n in range(1, 11)]


def task_of(smiles: list[str], *, name: str = "mine", dropped: tuple[int, ...] = ()) -> TaskData:
    task = Task(name, "regression", "rmse", (name, "other-name"))
    return TaskData(task, tuple(smiles), np.zeros((len(smiles), 1)), ("y",), tuple((row, "junk") for row in dropped))


def sets(split: Split) -> list[set[int]]:
    return [set(getattr(split, part).tolist()) for part in PARTS]


def write(path: Path, **content: object) -> Path:
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["bbbp", "sider", "esol", "tox21", "lipophilicity"])
def test_the_published_algorithm_as_files(shared_data, name):
    data = load_task(name, shared_data / "moleculenet")
    split = load_split(shared_data / "oracles" / "splits", data)
    assert split.digest == make_split(data, "hu-scaffold").digest
    assert (split.name, split.seed, split.source) == ("file", None, name)


@pytest.mark.parametrize(("name", "folder"), [("bbbp", "ogbg_molbbbp"), ("esol", "ogbg_molesol")])
def test_the_official_sets_of_ogb_as_files(shared_data, name, folder):
    data = load_task(name, shared_data / "moleculenet")
    expected = make_split(data, "ogb-scaffold").digest
    ogb = shared_data / "oracles" / "ogb"
    for path in (ogb, ogb / folder, ogb / folder / "split" / "scaffold"):
        split = choose_split(data, str(path))
        assert (split.digest, split.source) == (expected, folder)


def test_ogbs_folder_of_another_data_set_is_known_by_its_molecules(shared_data):
    esol = load_task("esol", shared_data / "moleculenet")
    with pytest.raises(SplitError, match=f"of other molecules than those of esol.*here it is {esol.smiles_digest}"):
        load_split(shared_data / "oracles" / "ogb" / "ogbg_molbbbp", esol)


def test_a_split_is_chosen_by_name_or_path(tmp_path):
    data = task_of(CHAINS)
    assert choose_split(data, "random", 3).digest == make_split(data, "random", 3).digest
    with pytest.raises(SplitError, match="'scafold' is neither one of hu-scaffold, ogb-scaffold, random nor a file"):
        choose_split(data, "scafold")
    with pytest.raises(SplitError, match=r"'file' is neither .*give its path, such as --split splits/mine\.json"):
        choose_split(data, "file")


def test_what_is_written_is_read(tmp_path):
    data = task_of(CHAINS)
    for seed in (0, 1):
        made = make_split(data, "random", seed)
        path = made.write(tmp_path, data)
        for place in (path, tmp_path):
            read = choose_split(data, str(place), seed)
            for part in PARTS:
                np.testing.assert_array_equal(getattr(read, part), getattr(made, part))
            assert (read.name, read.source, read.digest) == ("file", f"mine-random-seed{seed}", made.digest)
        again = read.write(tmp_path / f"again{seed}", data)
        assert again.name == f"mine-file-mine-random-seed{seed}.json"
        assert json.loads(again.read_text())["source"] == f"mine-random-seed{seed}"
        assert load_split(again, data).source == f"mine-random-seed{seed}"
    with pytest.raises(SplitError, match=r"holds splits of mine for seed 0, 1, none for seed 7: add one, lower"):
        load_split(tmp_path, data, seed=7)
    (tmp_path / "mine-random-seed1.json").unlink()
    with pytest.raises(SplitError, match=r"for seed 0, none for seed 1"):
        load_split(tmp_path, data, seed=1)
    assert load_split(tmp_path / "mine-random-seed0.json", data, seed=1).source == "mine-random-seed0"


def test_a_file_of_another_data_set_is_refused_with_its_digest(tmp_path):
    data, other = task_of(CHAINS), task_of([*CHAINS[1:], "N"])
    path = make_split(data, "random").write(tmp_path, data)
    with pytest.raises(SplitError) as said:
        load_split(path, other)
    assert f"is {data.smiles_digest}, here it is {other.smiles_digest}" in str(said.value)
    about = json.loads(path.read_text())
    write(path, **{**about, "test": about["valid"], "valid": about["test"]})
    with pytest.raises(SplitError, match="does not match its own digest"):
        load_split(path, data)
    # Files from before the digest hold the molecules themselves.
    write(path, **{key: value for key, value in about.items() if key != "smiles_digest"})
    assert load_split(path, data).digest == about["digest"]
    with pytest.raises(SplitError, match="of other molecules"):
        load_split(path, other)


def test_the_same_molecules_from_another_file_are_the_same(tmp_path):
    written = task_of(CHAINS, dropped=(3,))
    path = make_split(written, "random").write(tmp_path, written)
    assert load_split(path, task_of(CHAINS)).digest == make_split(written, "random").digest


@pytest.mark.parametrize(
    "name", ["mine.json", "ogb_splits_mine.json.gz", "OGB_splits_other-name.json", "mine-seed0.json"]
)
def test_names_in_a_folder(tmp_path, name):
    write(tmp_path / name, train=[0, 1], valid=[2], test=[3])
    (tmp_path / "yours.json").write_text("{}")
    assert sets(load_split(tmp_path, task_of(CHAINS[:4]))) == [{0, 1}, {2}, {3}]


def test_the_file_of_a_task_whose_name_begins_alike_is_not_taken(tmp_path):
    parts = {"train": [0, 1], "valid": [2], "test": [3]}
    for name in ("mine-2.json", "mine-2-random-seed0.json"):
        write(tmp_path / name, task="mine-2", **parts)
    write(tmp_path / "mine-notes.json", words=[1])
    (tmp_path / "mine-junk.json").write_text("{")
    write(tmp_path / "mine-unnamed.json", **parts)
    with pytest.raises(SplitError, match=r"no split of mine, such as mine\.json or ogbg_molmine/; ") as raised:
        load_split(tmp_path, task_of(CHAINS[:4]))
    for why in (
        "mine-2-random-seed0.json is of mine-2;",
        "mine-junk.json is not JSON",
        "mine-notes.json lacks one of the lists",
        'mine-unnamed.json does not say "task": "mine"',
    ):
        assert why in str(raised.value)
    write(tmp_path / "mine-v2.json", task="mine", **parts)
    assert load_split(tmp_path, task_of(CHAINS[:4])).source == "mine-v2"


def test_the_name_of_a_task_may_have_capitals(tmp_path):
    data = task_of(CHAINS, name="Mine")
    made = make_split(data, "random", 0)
    made.write(tmp_path, data)
    assert load_split(tmp_path, data).digest == made.digest


def ogb_folder(folder: Path, smiles: list[str] | None = None, **parts: list[int]) -> Path:
    scaffold = folder / "split" / "scaffold"
    scaffold.mkdir(parents=True)
    for part, rows in parts.items():
        (scaffold / f"{part}.csv.gz").write_bytes(gzip.compress("\n".join(map(str, rows)).encode()))
    if smiles is not None:
        (folder / "mapping").mkdir()
        table = "y,smiles,mol_id\n" + "".join(f"0,{text},m\n" for text in smiles)
        (folder / "mapping" / "mol.csv.gz").write_bytes(gzip.compress(table.encode()))
    return folder


def test_positions_may_count_the_rows_that_do_not_parse(tmp_path):
    # Rows of the file: C, junk, CC, CCC, junk, CCCC. Their splits count all six, as OGB's of Tox21 do.
    data = task_of(CHAINS[:4], dropped=(1, 4))
    rows = ["C", "x", "CC", "CCC", "x", "CCCC"]
    parts = {"train": [5, 0, 1], "valid": [3], "test": [4, 2]}
    folder = ogb_folder(tmp_path / "ogbg_molmine", rows, **parts)
    split = load_split(folder, data)
    assert [getattr(split, part).tolist() for part in PARTS] == [[3, 0], [2], [1]]
    assert sets(load_split(write(tmp_path / "mine.json", **parts), data)) == [{0, 3}, {2}, {1}]
    shutil.rmtree(folder / "mapping")
    assert load_split(folder, data).digest == split.digest
    with pytest.raises(SplitError, match="the part valid is empty"):
        load_split(write(tmp_path / "mine.json", train=[5, 0, 3], valid=[1], test=[4, 2]), data)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"train": [0, 1], "valid": [1, 2], "test": [3]}, "molecule 1 occurs twice, in train and valid"),
        ({"train": [0, 0, 1], "valid": [2], "test": [3]}, "molecule 0 occurs twice, in train and train"),
        ({"train": [0, 1], "valid": [2], "test": [4]}, "position 4 is out of range, mine has 4 molecules"),
        ({"train": [0, 1], "valid": [-1], "test": [3]}, "position -1 is out of range"),
        ({"train": [0, 1], "valid": [2], "test": [10**30]}, "is out of range"),
        ({"train": [0, 1, 2], "valid": [3], "test": []}, "the part test is empty"),
        ({"train": [0], "valid": [2], "test": [3]}, "leaves out 1 of 4 molecules of mine, the first is 1"),
        ({"train": [0, 1], "valid": [2], "test": [3.0]}, r"test contains 3\.0; positions must be whole numbers"),
        ({"train": [0, 1], "valid": [2], "test": ["3"]}, "test contains '3'; positions must be whole numbers"),
        ({"train": [0, 1], "val": [2], "test": [3]}, "lacks one of the lists train, valid, test; it holds train, val"),
    ],
)
def test_unfit_parts_are_said(tmp_path, parts, sentence):
    with pytest.raises(SplitError, match=sentence):
        load_split(write(tmp_path / "mine.json", **parts), task_of(CHAINS[:4]))


def test_unfit_files_are_said(tmp_path):
    data = task_of(CHAINS[:4])
    for content, sentence in (
        (b"train\n", "is not JSON"),
        (b"[1]", "it is not a JSON object"),
        (b"\xff\xfe\x00", "not JSON"),
    ):
        (tmp_path / "mine.json").write_bytes(content)
        with pytest.raises(SplitError, match=sentence):
            load_split(tmp_path / "mine.json", data)
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}" * 1000)[:-12])
    with pytest.raises(SplitError, match="cannot be read"):
        load_split(tmp_path / "cut.json.gz", data)
    with pytest.raises(SplitError, match="does not exist"):
        load_split(tmp_path / "nowhere", data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SplitError, match=r"holds no split of mine, such as mine.json or ogbg_molmine/"):
        load_split(tmp_path / "empty", data)
    (tmp_path / "empty" / "mine-hu.json").write_bytes(b'{"train": [0, 1')
    with pytest.raises(SplitError, match=r"mine-hu.json is not JSON"):
        load_split(tmp_path / "empty", data)
    with pytest.raises(SplitError, match=r"lacks test.csv.gz"):
        load_split(ogb_folder(tmp_path / "a", train=[0, 1], valid=[2]), data)
    with pytest.raises(SplitError, match="of other molecules"):
        load_split(ogb_folder(tmp_path / "b", ["N"] * 4, train=[0, 1], valid=[2], test=[3]), data)
    with pytest.raises(SplitError, match=r"of other molecules.*rows \[5\] of its file"):
        load_split(
            write(tmp_path / "m.json", train=[0, 1], valid=[2], test=[3], dropped_rows=[5]),
            task_of(CHAINS[:4], dropped=(1,)),
        )


def test_a_split_without_smiles_is_not_taken_for_that_of_another_task(tmp_path):
    lists = {"train": [0, 1], "valid": [2], "test": [3]}
    data = task_of(CHAINS[:4])
    with pytest.raises(SplitError, match=r"a\.json is a split of esol, not of mine; give one of mine"):
        load_split(write(tmp_path / "a.json", **lists, task="esol"), data)
    for name in ({}, {"task": "Mine"}, {"task": "other-name"}, {"task": "classification"}):
        split = load_split(write(tmp_path / "b.json", **lists, **name), data)
        assert not split.compared
        (note,) = notes_on((), [(split, data)])
        assert note.startswith("mine, b: the file of the split has no SMILES, so only the number of molecules shows")
    with_smiles = load_split(write(tmp_path / "c.json", **lists, smiles=CHAINS[:4], task="esol"), data)
    assert with_smiles.compared
    assert notes_on((), [(with_smiles, data)]) == []
