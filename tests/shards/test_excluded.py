"""Files of downstream molecules, in the forms that circulate, as files to be excluded."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsa_shards.catalog import skeletons
from mmsa_shards.errors import PrepareError
from mmsa_shards.job import Input, describe
from mmsa_shards.read import EXPORT_KEY

ETHANOL, BENZENE = "LFQSCWFLJHTTHZ", "UHOVQNZJYSORNB"


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
    source = Input(str(path), path.name, 0, "")
    assert skeletons(source, replace(options, smiles_column=asked, id_column=asked)) == {ETHANOL, BENZENE}


def test_the_column_of_the_inputs_is_taken_where_there_is_one(tmp_path, options):
    (tmp_path / "x.csv").write_text("smiles,STRUCTURE\nCCO,c1ccccc1\n")
    source = Input(str(tmp_path / "x.csv"), "x.csv", 0, "")
    assert skeletons(source, replace(options, smiles_column="STRUCTURE")) == {BENZENE}
    (tmp_path / "x.csv").write_text("what,ever\nCCO,c1ccccc1\n")
    with pytest.raises(PrepareError, match="has no SMILES column"):
        skeletons(source, replace(options, smiles_column="STRUCTURE"))


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
