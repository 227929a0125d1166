"""Files of downstream molecules, in the forms that circulate, as files to be excluded."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsa_shards.errors import PrepareError
from mmsa_shards.exclude import excluded_by
from mmsa_shards.job import Input, describe
from mmsa_shards.read import EXPORT_KEY

ETHANOL, BENZENE = "LFQSCWFLJHTTHZ", "UHOVQNZJYSORNB"


def source_of(path: Path) -> Input:
    """The file as a job finds it."""
    return Input(str(path), path.name, path.stat().st_size, str(path.stat().st_mtime))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BBBP.csv", "num,name,p_np,smiles\n1,a,1,CCO\n2,b,0,c1ccccc1\n3,c,0,junk\n"),
        ("bace.csv", "mol,CID,Class,Model,pIC50\nOCC,B1,1,Train,9.1\nc1ccccc1,B2,0,Train,8\n"),
        ("tox21.csv", "NR-AR,SR-p53,mol_id,smiles\n0,,T1,CCO\n,1,T2,[2H]c1ccccc1\n"),
        ("hub.csv", "SMILES,label\nCCO,1\nc1ccccc1,0\n"),
        ("esol.csv", '"Compound ID",smiles\n"a, b",CCO \nc,c1ccccc1\n'),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("asked", ["", "STRUCTURE"], ids=["usual columns", "columns of the inputs"])
def test_forms(tmp_path, options, name, text, packed, asked):
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = excluded_by(source_of(path), replace(options, smiles_column=asked, id_column=asked))
    assert found.skeletons == {ETHANOL, BENZENE}


def test_the_column_of_the_inputs_is_taken_where_there_is_one(tmp_path, options):
    (tmp_path / "x.csv").write_text("smiles,STRUCTURE\nCCO,c1ccccc1\n")
    asked = replace(options, smiles_column="STRUCTURE", id_column="code")  # ids are of no use here
    assert excluded_by(source_of(tmp_path / "x.csv"), asked).skeletons == {BENZENE}
    (tmp_path / "x.csv").write_text("what,ever\nCCO,c1ccccc1\n")
    with pytest.raises(PrepareError, match="has no SMILES column"):
        excluded_by(source_of(tmp_path / "x.csv"), asked)


def test_molecules_that_cannot_be_read_are_counted(tmp_path, options):
    path = tmp_path / "test.csv"
    path.write_text("id,smiles\n1,CCO\n2,CCN(\n3,\n4,C[Foo]\n")
    found = excluded_by(source_of(path), options)
    assert found.skeletons == {ETHANOL}
    assert found.unread.startswith(f"3 of 4 molecules of {path} cannot be read, so they are not excluded: the first, ")
    assert "number 3: cannot be read as a SMILES" in found.unread
    path.write_text("id,smiles\n1,CCO\n")
    assert excluded_by(source_of(path), options).unread == ""


def test_molecules_that_no_input_can_hold_need_not_be_excluded(tmp_path, options):
    path = tmp_path / "test.csv"
    path.write_text("smiles\nCCO\nCCCCCCC\n*CC\n")
    small = replace(options, max_atoms=5)
    assert excluded_by(source_of(path), small) == ({ETHANOL}, "")
    path.write_text("smiles\nCCCCCCC\n*CC\n")
    assert excluded_by(source_of(path), small) == (set(), "")
    path.write_text("smiles\nCCCCCCC\njunk\n")
    assert excluded_by(source_of(path), small).unread.startswith("1 of 2 molecules of ")


@pytest.mark.parametrize(
    ("name", "text", "asked", "first"),
    [
        ("id_first.smi", "m1 CCO\nm2 c1ccccc1\n", "", "number 1: cannot be read as a SMILES"),
        ("table.smi", "CCO,1\nc1ccccc1,0\n", "", "number 1: cannot be read as a SMILES"),
        ("names.csv", "structure,smiles\nA-17,CCO\nB-2,CCN\n", "structure", "number 2: cannot be read as a SMILES"),
    ],
)
def test_a_file_of_which_nothing_can_be_read_excludes_nothing_and_is_refused(
    tmp_path, options, name, text, asked, first
):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(PrepareError, match=rf"none of the 2 molecules of \S+/{name}, .*{first}.*: see that the SMILES"):
        excluded_by(source_of(path), replace(options, smiles_column=asked))


def test_a_file_that_is_cut_off_is_refused_whatever_is_allowed_of_inputs(tmp_path, options):
    whole = gzip.compress(b"".join(b"C" * (n % 50 + 1) + b"O m%d\n" % n for n in range(3000)))
    path = tmp_path / "test.smi.gz"
    path.write_bytes(whole[: len(whole) // 2])
    for allowed in (False, True):
        with pytest.raises(
            PrepareError, match=r"cannot exclude .*/test\.smi\.gz: the file ends in the .*fetch it again"
        ):
            excluded_by(source_of(path), replace(options, allow_truncated=allowed))


def test_a_file_that_was_replaced_since_the_job_began_is_refused(tmp_path, options):
    path = tmp_path / "test.csv"
    path.write_text("smiles\nCCO\n")
    before = source_of(path)
    path.write_text("smiles\nCCO\nCCN\n")
    with pytest.raises(PrepareError, match=r"test\.csv has changed since this preparation began: run again"):
        excluded_by(before, options)


def test_a_folder_or_a_pattern_stands_for_its_files(tmp_path, options):
    downstream = tmp_path / "moleculenet"
    downstream.mkdir()
    for name in ("bbbp.csv.gz", "tox21.csv", "README.md"):
        (downstream / name).write_text("smiles\nC\n")
    (tmp_path / "a.smi").write_text("C\n")
    vectors = pa.table({"smiles": ["C"]}).replace_schema_metadata({EXPORT_KEY: "{}"})
    (tmp_path / "vectors").mkdir()
    pq.write_table(vectors, tmp_path / "vectors" / "part-00000.parquet")  # as `mmsa embed` writes them
    for exclude, names in (
        (str(downstream), ["bbbp.csv.gz", "tox21.csv"]),
        (f"{downstream}/*.gz", ["bbbp.csv.gz"]),
        (str(downstream / "tox21.csv"), ["tox21.csv"]),
        (str(tmp_path / "vectors"), ["part-00000.parquet"]),
    ):
        job = describe([str(tmp_path / "a.smi")], replace(options, exclude=(exclude,)), None)
        assert [source.name for source in job.exclude] == names
