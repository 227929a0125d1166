"""Reading: every kind of file, every place, and what files are like in the wild."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa_shards.errors import PrepareError
from mmsa_shards.read import Record, Refused, read_records

MOLFILE = """ethanol
     made by hand

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0
    1.5000    0.0000    0.0000 C   0  0
    2.2500    1.3000    0.5000 O   0  0
  1  2  1  0
  2  3  1  0
M  END
"""


def _read(path, options, **changes):
    return list(read_records(str(path), dataclasses.replace(options, **changes)))


def _ids(records):
    return [(record.id, record.place.number) for record in records]


def test_smiles_file(tmp_path, options):
    path = tmp_path / "a.smi"
    path.write_bytes(b"SMILES name\n# a comment\nCCO ethanol\n\nCC(=O)O\tacetic acid\tmore\r\nC |$_R1$| methane\nN")
    records = _read(path, options)
    assert _ids(records) == [("ethanol", 3), ("acetic acid", 5), ("methane", 6), ("a.smi:7", 7)]
    assert [record.structure.text for record in records] == ["CCO", "CC(=O)O", "C", "N"]


def test_pubchems_own_smiles_file_has_the_cid_first(tmp_path, options):
    path = tmp_path / "CID-SMILES.gz"
    path.write_bytes(gzip.compress(b"2244\tCC(=O)OC1=CC=CC=C1C(=O)O\n"))
    (record,) = _read(path, options)
    assert (record.id, record.structure.text) == ("CID2244", "CC(=O)OC1=CC=CC=C1C(=O)O")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_of_every_make(tmp_path, options, end, separator):
    path = tmp_path / "a.csv"
    rows = [["y", "Smiles", "Name"], ["1", "CCO", '"eth""anol"'], ["2", "", "none"], ["3"]]
    path.write_bytes(b"\xef\xbb\xbf" + end.join(separator.join(row) for row in rows).encode())
    records = _read(path, options)
    assert _ids(records) == [('eth"anol', 2), ("none", 3), ("a.csv:4", 4)]
    assert [record.structure.text for record in records] == ["CCO", "", ""]


def test_csv_columns_can_be_named(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text("smiles,reactant,code\nC,CCO,x7\n")
    (record,) = _read(path, options, smiles_column="reactant", id_column="code")
    assert (record.id, record.structure.text) == ("x7", "CCO")


def test_csv_without_smiles_says_which_columns_there_are(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text("formula,y\nC2H6O,1\n")
    with pytest.raises(PrepareError, match=r"a\.csv has no SMILES column.*'formula', 'y'.*prepare\.smiles_column"):
        _read(path, options)
    with pytest.raises(PrepareError, match="no code column"):
        _read(path, options, smiles_column="formula", id_column="code")


def test_parquet(tmp_path, options):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"cid": [5, None], "smiles": ["CCO", None]}), path)
    records = _read(path, options)
    assert _ids(records) == [("5", 1), ("a.parquet:2", 2)]
    assert [record.structure.text for record in records] == ["CCO", ""]


def test_sdf_ids(tmp_path, options):
    path = tmp_path / "a.sdf.gz"
    tagged = MOLFILE + ">  <PUBCHEM_COMPOUND_CID>  (1) \n702\n\n> <PUBCHEM_CONFORMER_RMSD>\n0.4\n\n$$$$\n"
    untitled = MOLFILE.replace("ethanol", "", 1) + "> <ID>\nmine\n\n$$$$\n"
    path.write_bytes(gzip.compress((tagged + MOLFILE + "$$$$\n" + untitled + MOLFILE).encode()))
    records = _read(path, options)
    assert _ids(records) == [("CID702", 1), ("ethanol", 2), ("mine", 3), ("ethanol", 4)]
    assert [record.conformer_source for record in records] == ["pubchem3d", "input", "input", "input"]
    assert all(record.structure.text == MOLFILE for record in records[:2])


def test_truncated_files_fail_or_are_told(tmp_path, options):
    whole = gzip.compress(b"".join(b"C" * n + b" m%d\n" % n for n in range(1, 3000)))
    path = tmp_path / "a.smi.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PrepareError, match=r"a\.smi\.gz ends in the middle.*allow_truncated"):
        _read(path, options)
    records = _read(path, options, allow_truncated=True)
    assert isinstance(records[-1], Refused)
    assert records[-1].reason == "truncated_file"
    assert len(records) > 1000  # all that stands before the cut
    assert [record.id for record in records[:-1]] == [f"m{n}" for n in range(1, len(records))]


def test_gzip_files_may_have_several_members_and_padding(tmp_path, options):
    path = tmp_path / "a.smi.gz"
    path.write_bytes(gzip.compress(b"CCO a\nCC") + gzip.compress(b"C b\n") + bytes(512))
    assert [record.id for record in _read(path, options)] == ["a", "b"]


def test_a_flipped_bit_is_told(tmp_path, options):
    whole = bytearray(gzip.compress(b"CCO a\nCCC b\n"))
    whole[-6] ^= 1  # in the checksum
    path = tmp_path / "a.smi.gz"
    path.write_bytes(whole)
    with pytest.raises(PrepareError, match="is damaged"):
        _read(path, options)
    assert _read(path, options, allow_truncated=True)[-1].reason == "damaged_file"


def test_sdf_cut_off_in_a_record(tmp_path, options):
    path = tmp_path / "a.sdf"
    path.write_text(MOLFILE + "$$$$\n" + MOLFILE[:150])
    with pytest.raises(PrepareError, match="ends in the middle"):
        _read(path, options)


def test_a_line_longer_than_any_molecule_costs_itself(tmp_path, options):
    path = tmp_path / "a.smi"
    path.write_bytes(b"CCO a\n" + b"C" * 10_000_000 + b" huge\nCCC b\n")
    first, huge, last = _read(path, options)
    assert (first.id, huge.reason, huge.place.number, last.id) == ("a", "too_long", 2, "b")
    path = tmp_path / "a.csv"
    path.write_bytes(b"smiles\nCCO\n" + b"C" * 10_000_000 + b"\nCCC\n")
    assert [type(record) for record in _read(path, options)] == [Record, Refused, Record]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.smi", b"\n\n", "holds no records"),
        ("a.xyz", b"1\n\nC 0 0 0\n", "no kind that can be read.*smi"),
        ("a.parquet", b"not parquet", "cannot read"),
        ("a.csv", "smiles\nCCO\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, options, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PrepareError, match=message):
        _read(tmp_path / name, options)


def test_a_missing_file(tmp_path, options):
    with pytest.raises(PrepareError, match="does not exist"):
        _read(tmp_path / "a.smi", options)


def test_names_in_latin_1(tmp_path, options):
    path = tmp_path / "a.smi"
    path.write_bytes("CCO alcool éthylique".encode("latin-1"))
    assert _read(path, options)[0].id == "alcool éthylique"


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=2000), kind=st.sampled_from(["smi", "csv", "sdf", "sdf.gz", "parquet"]))
def test_any_bytes_are_records_or_one_clear_error(tmp_path_factory, options, content, kind):
    path = tmp_path_factory.mktemp("any") / f"a.{kind}"
    path.write_bytes(content)
    with contextlib.suppress(PrepareError):
        assert all(isinstance(r, Record | Refused) for r in _read(path, options, allow_truncated=True))
