"""Reading: every kind of file, every place, and what files are like in the wild."""

from __future__ import annotations

import bz2
import contextlib
import csv
import dataclasses
import gzip
import io
import os
import random
import resource
import tracemalloc
import zlib
from itertools import chain, pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from mmsa_shards.errors import PrepareError
from mmsa_shards.read import Record, Refused, read_records
from mmsa_shards.read.lines import smiles_records
from mmsa_shards.read.rows import Lines, table_rows
from mmsa_shards.read.sdf import sdf_records
from mmsa_shards.read.unpack import plain
from tests.fixtures.download_server import Fault, serving

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


def test_an_id_behind_a_blank_ends_at_the_tab(tmp_path, options):
    path = tmp_path / "a.smi"
    lines = [
        "SMILES name\tlogP",
        "CCO aspirin\t5.1",
        "CCN  two words \t5.1\t7",
        "CCC |c:0|\tplain",
        "CCF |$_R1$| of ChemAxon\t5.1",
        "CCCC\tmany words here\t1",
        " CCCl x\ty",
        "CCBr \tafter a blank\t2",
    ]
    path.write_text("\n".join(lines))
    records = _read(path, options)
    ids = ["aspirin", "two words", "plain", "of ChemAxon", "many words here", "x", "after a blank"]
    assert _ids(records) == [(name, number) for number, name in enumerate(ids, 2)]
    texts = ["CCO", "CCN", "CCC |c:0|", "CCF |$_R1$|", "CCCC", "CCCl", "CCBr"]
    assert [record.structure.text for record in records] == texts


def test_an_id_without_a_smiles_is_a_record(tmp_path, options):
    path = tmp_path / "a.smi"
    path.write_bytes(b"CCO\ta\n\tno structure\tmore\n\n \t \n  \tn2\n  CC b\n")
    records = _read(path, options)
    assert _ids(records) == [("a", 1), ("no structure", 2), ("n2", 5), ("b", 6)]
    assert [record.structure.text for record in records] == ["CCO", "", "", "CC"]


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
    path.write_text('smiles,reactant,code,"yield; g; mol"\nC,CCO,x7,1\n')
    (record,) = _read(path, options, smiles_column="reactant", id_column="code")
    assert (record.id, record.structure.text) == ("x7", "CCO")


def test_usual_columns_however_they_are_spelt(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text("Compound ID,measured log(solubility:mol/L), Canonical SMILES\nAmigdalin,-0.77,CCO\n")
    (record,) = _read(path, options)
    assert (record.id, record.structure.text) == ("Amigdalin", "CCO")


def test_csv_without_smiles_says_which_columns_there_are(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text("formula,y\nC2H6O,1\n")
    with pytest.raises(PrepareError, match=rf"^{path} has no SMILES column.*'formula', 'y'.*prepare\.smiles_column"):
        _read(path, options)
    with pytest.raises(PrepareError, match="no code column"):
        _read(path, options, smiles_column="formula", id_column="code")


def test_parquet(tmp_path, options):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"cid": [5, None], "smiles": ["CCO", None]}), path)
    records = _read(path, options)
    assert _ids(records) == [("5", 1), ("a.parquet:2", 2)]
    assert [record.structure.text for record in records] == ["CCO", ""]
    told: list[int] = []
    list(read_records(str(path), options, progress=told.append))
    assert told == [path.stat().st_size // 2, path.stat().st_size]


def test_the_first_of_several_columns_of_one_name_is_taken(tmp_path, options):
    columns = [pa.array(texts) for texts in (["x"], ["CCO"], ["CCN"], ["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["id", "smiles", "smiles", "id"]), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("id,smiles,smiles,id\nx,CCO,CCN,b\n")
    assert _outcomes(tmp_path / "a.parquet", options) == _outcomes(tmp_path / "a.csv", options) == [("x", "CCO")]


def test_parquet_of_bytes(tmp_path, options):
    """Columns of bytes, and of text that is not UTF-8: a SMILES that RDKit will refuse, and a name in Latin-1."""
    path = tmp_path / "a.parquet"
    texts = pa.array([b"CCO", b"C\xff", None], pa.binary())
    names = pa.array(["éthanol".encode(), "é".encode("latin-1"), None], pa.binary())
    as_strings = [pa.Array.from_buffers(pa.string(), 3, column.buffers()) for column in (texts, names)]
    encoded = [column.dictionary_encode() for column in as_strings]
    for columns in ([texts, names], as_strings, encoded):
        pq.write_table(pa.table(dict(zip(["smiles", "name"], columns, strict=True))), path)
        assert _outcomes(path, options) == [("éthanol", "CCO"), ("é", "C\xff"), ("a.parquet:3", "")]


def test_a_parquet_file_that_is_cut_off_is_said_to_be(tmp_path, options):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"smiles": ["CCO"] * 100}), path)
    whole = path.read_bytes()
    for content in (whole[:4], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(PrepareError, match=r"cannot read a\.parquet: it is cut off .*: fetch it again"):
            _read(path, options)
    path.write_bytes(b"smiles\nCCO\n")
    with pytest.raises(PrepareError, match=r"a\.parquet: it is not a Parquet file: rename it"):
        _read(path, options)


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


def test_an_answer_that_breaks_off_is_a_file_that_does(options):
    content = b"".join(b"C" * n + b" m%d\n" % n for n in range(1, 500))
    with serving() as server:
        server.put("a.smi", content)
        server.always["a.smi"] = Fault("truncate", at=1000)
        with pytest.raises(PrepareError, match=r"a\.smi ends in the middle after 0 records .*: fetch it again, or"):
            _read(f"{server.url}a.smi", options)
        (cut,) = _read(f"{server.url}a.smi", options, allow_truncated=True)
        assert cut.reason == "truncated_file"
        del server.always["a.smi"]
        assert len(_read(f"{server.url}a.smi", options)) == 499


def test_a_file_that_became_shorter_while_it_was_read_is_told(tmp_path, options):
    path = tmp_path / "a.smi"
    path.write_bytes(b"CCO a\n" * 200_000)
    records = read_records(str(path), options)
    next(records)
    os.truncate(path, 600_003)
    with pytest.raises(
        PrepareError, match=r"ends in the middle after \d+ records \(600003 of its 1200000 bytes came\)"
    ):
        list(records)


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


@pytest.mark.parametrize(
    ("rest", "what"), [(MOLFILE[:150], "no 'M  END'"), (MOLFILE + "> <ID>\nmi", r"data, but no '\$\$\$\$'")]
)
def test_sdf_cut_off_in_a_record(tmp_path, options, rest, what):
    path = tmp_path / "a.sdf"
    path.write_text((MOLFILE + "$$$$\n") * 2 + rest)
    with pytest.raises(PrepareError, match=f"ends in the middle after 2 records .its last record has {what}"):
        _read(path, options)
    first, second, cut = _read(path, options, allow_truncated=True)
    assert first.structure.text == second.structure.text == MOLFILE
    assert (cut.id, cut.reason, cut.place.number) == ("a.sdf:3", "truncated_file", 3)


def test_a_gzipped_sdf_keeps_every_record_before_the_cut(tmp_path, options):
    records = [MOLFILE.replace("ethanol", f"e{n}", 1) + "$$$$\n" for n in range(3000)]
    whole = gzip.compress("".join(records).encode())
    path = tmp_path / "a.sdf.gz"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    there = zlib.decompressobj(wbits=31).decompress(path.read_bytes())
    *kept, cut = _read(path, options, allow_truncated=True)
    assert [record.id for record in kept] == [f"e{n}" for n in range(there.count(b"$$$$\n"))]
    assert len(kept) > 1500
    assert cut.place.number == len(kept) + 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_sdf_of_every_make(tmp_path, options, end):
    """Byte order mark, words after the dollars, dollars within a line, an empty record, no end of the last line."""
    text = f"{MOLFILE}> <PRICE>\n9 $$$$\n\n$$$$ end\n$$$$\n{MOLFILE}$$$$"
    path = tmp_path / "a.sdf"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", end).encode())
    first, empty, last = _read(path, options)
    assert first.structure.text == last.structure.text == MOLFILE
    assert (empty.id, empty.structure.text.strip()) == ("a.sdf:2", "")


V3000 = Chem.MolToV3KMolBlock(Chem.MolFromMolBlock(MOLFILE)).replace("ethanol", "solid", 1)
DATA = "> <ID>\nm{}\n\n> <NOTE>\nM  END\n\n"


def test_molfiles_without_dollars_between_them_are_records(tmp_path, options):
    path = tmp_path / "a.sdf"
    untitled = MOLFILE.replace("ethanol", "", 1)
    path.write_text(
        MOLFILE + V3000 + MOLFILE + DATA.format(3) + untitled + DATA.format(4) + untitled[:-1] + MOLFILE
        + DATA.format(6) + MOLFILE[:170] + "\n" + MOLFILE + "$$$$\n" + MOLFILE[:-1] + untitled + "$$$$\n" + MOLFILE
        + "\n" + V3000
    )  # fmt: skip
    records = _read(path, options)
    names = ["ethanol", "solid", "m3", "m4", "a.sdf:5", "m6", "ethanol", "ethanol", "ethanol", "a.sdf:10", "ethanol"]
    assert _ids(records) == [(name, number) for number, name in enumerate([*names, "solid"], 1)]
    texts = [record.structure.text.rstrip("\n") + "\n" for record in records]
    cut = texts.pop(6)
    assert (cut, set(texts)) == (MOLFILE[:170] + "\n", {MOLFILE, untitled, V3000})


@pytest.mark.parametrize("held", [MOLFILE, MOLFILE.replace("ethanol", "", 1), V3000, "was\n" + MOLFILE, MOLFILE * 2])
def test_a_molfile_in_a_data_item_is_data(tmp_path, options, held):
    path = tmp_path / "a.sdf"
    path.write_text(f"{MOLFILE}> <AS_DRAWN>\n{held}\n> <ID>\nmine\n\n$$$$\n{MOLFILE}")
    records = _read(path, options)
    assert _ids(records) == [("mine", 1), ("ethanol", 2)]
    assert {record.structure.text for record in records} == {MOLFILE}


def test_molfiles_without_dollars_that_cannot_be_parted_are_refused(tmp_path, options):
    path = tmp_path / "a.sdf"
    old = MOLFILE.replace("  0999 V2000", "")
    path.write_text(f"{old}{old}> <ID>\nmine\n\n$$$$\n{MOLFILE}")
    refused, last = _read(path, options)
    assert (refused.reason, refused.place.number, last.id) == ("syntax", 1, "ethanol")
    assert "holds 2 molfiles, and where they begin is not clear: put a line '$$$$'" in refused.message


def test_many_molfiles_without_dollars_are_not_held(tmp_path, options):
    path = tmp_path / "a.sdf"
    path.write_text(MOLFILE * 200_000)
    tracemalloc.start()
    count = sum(record.structure.text == MOLFILE for record in read_records(str(path), options))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200_000
    assert peak < 128 << 20


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), max_size=40), end=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_where_pieces_end_makes_no_difference(options, sizes, end):
    content = ((MOLFILE + "> <ID>\nmine\n\n$$$$\n") * 3).encode().replace(b"\n", end)
    lines = b"CCO a" + end + end + b"CC b" + end
    ends = [sum(sizes[:n]) for n in range(len(sizes) + 1)]

    def cut(text: bytes) -> list[bytes]:
        return [text[a:b] for a, b in pairwise([*ends, len(text)])]

    assert list(sdf_records(plain(cut(content), "a"), "a", options)) == list(
        sdf_records(plain([content], "a"), "a", options)
    )
    found = list(smiles_records(plain(cut(lines), "a"), "a", options))
    assert _ids(found) == [("a", 1), ("b", 3)]


def test_pubchems_own_sdf(shared_data, options):
    folder = shared_data / "pubchem"
    flat = _read(folder / "pubchem2d_Compound_0000001_0000250.sdf.gz", options)
    assert [record.id for record in flat[:4]] == ["CID1", "CID2", "CID3", "CID4"]
    assert {record.conformer_source for record in flat} == {"input"}
    assert len(flat) == len({record.id for record in flat}) == 245
    solid = _read(folder / "pubchem3d_101.sdf.gz", options)
    assert (solid[0].id, len(solid)) == ("CID2244", 101)
    assert {record.conformer_source for record in solid} == {"pubchem3d"}


def test_a_line_longer_than_any_molecule_costs_itself(tmp_path, options):
    path = tmp_path / "a.smi"
    path.write_bytes(b"CCO a\n" + b"C" * 10_000_000 + b" huge\nCCC b\n")
    first, huge, last = _read(path, options)
    assert (first.id, huge.reason, huge.place.number, last.id) == ("a", "too_long", 2, "b")
    path = tmp_path / "a.csv"
    path.write_bytes(b"smiles\nCCO\n" + b"C" * 10_000_000 + b"\nCCC\n")
    assert [type(record) for record in _read(path, options)] == [Record, Refused, Record]


def test_a_record_longer_than_any_molecule_costs_itself_and_is_not_held(tmp_path, options):
    path = tmp_path / "a.sdf"
    with path.open("wb") as file:
        file.write(f"{MOLFILE}$$$$\n{MOLFILE}".encode())
        for _ in range(400):
            file.write(b"> <BLOB>\n" + b"x" * (1 << 18) + b"\n")
        file.write(f"$$$$\n{MOLFILE}$$$$\n".encode())
    tracemalloc.start()
    first, huge, last = _read(path, options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (first.id, huge.reason, huge.place.number, last.id) == ("ethanol", "too_long", 2, "ethanol")
    assert peak < 64 << 20


@pytest.mark.parametrize(
    ("kind", "filling"), [("smi", b"\0"), ("smi", b"\n"), ("csv", b"\0"), ("sdf", b"\0"), ("sdf", b"\n")]
)
def test_a_gzip_bomb_is_stopped(tmp_path, options, kind, filling):
    """Members of 16 MiB, 4 GiB in all, in 4 MB."""
    path = tmp_path / f"a.{kind}.gz"
    start = {"smi": b"CCO a\n", "csv": b"smiles\nCCO\n", "sdf": f"{MOLFILE}$$$$\n".encode()}[kind]
    path.write_bytes(gzip.compress(start) + gzip.compress(filling * (1 << 24)) * 256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PrepareError, match=rf"a\.{kind}\.gz unpacks to \d+ times its size, .* \(at most 250 times\)"):
        _read(path, options)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_a_bomb_behind_good_data_is_stopped(tmp_path, options):
    """Random SMILES, which take several times the bytes of the bomb when packed."""
    letters = random.Random(0).choices("CNOFSP", k=1 << 21)
    path = tmp_path / "a.smi.gz"
    good = gzip.compress("".join(letters).encode(), 1)
    path.write_bytes(good + gzip.compress(bytes(1 << 27)))
    with pytest.raises(PrepareError, match="times its size"):
        _read(path, options)


@pytest.mark.parametrize(("suffix", "mend"), [("bz2", "bunzip2"), ("xz", "unxz"), ("zst", "unzstd"), ("zip", "unzip")])
def test_other_packings_are_refused_by_name(tmp_path, options, suffix, mend):
    path = tmp_path / f"a.smi.{suffix}"
    path.write_bytes(bz2.compress(b"CCO a\n"))
    with pytest.raises(
        PrepareError, match=rf"a\.smi\.{suffix} is packed .* unpack it with {mend}, or pack it with gzip"
    ):
        _read(path, options)


def test_the_query_of_a_url_is_no_part_of_the_name(options):
    with serving() as server:
        server.put("a.csv.gz?download=1", gzip.compress(b"smiles\nCCO\n"))
        (record,) = _read(f"{server.url}a.csv.gz?download=1", options)
        assert (record.id, record.structure.text) == ("a.csv.gz:2", "CCO")
        (record,) = _read(f"simplecache::{server.url}a.csv.gz?download=1", options)
        assert record.id == "a.csv.gz:2"


def test_the_query_of_a_url_tells_the_kind_where_the_path_does_not(options):
    with serving() as server:
        for name, start in (
            ("get?file=a.csv", b"smiles\n"),
            ("get.php?id=1&file=b/a.CSV.gz", b"smiles\n"),
            ("a.smi?x.csv", b""),
        ):
            server.put(name, start + b"CCO\n")
            (record,) = _read(server.url + name, options)
            assert record.structure.text == "CCO"
        for name, why in (
            ("get?file=a", "of no kind that can be read: download it to a file with one of "),
            ("a.zip?file=a.csv", "packed in an unsupported format"),
        ):
            with pytest.raises(PrepareError, match=why):
                _read(server.url + name, options)


def test_a_file_goes_by_the_name_that_it_is_given(tmp_path, options):
    (tmp_path / "CID-SMILES").write_bytes(b"1\tCCO\n2\t\n")
    (tmp_path / "b.smi").write_bytes(b"CCO\n")
    first, second = read_records(str(tmp_path / "CID-SMILES"), options, name="x/CID")
    assert (first.id, first.place.file, second.id, second.structure.text) == ("CID1", "x/CID", "CID2", "")
    (only,) = read_records(str(tmp_path / "b.smi"), options, name="y/b.smi")
    assert (only.id, *only.place) == ("y/b.smi:1", "y/b.smi", 1)


def test_ids_have_no_control_characters(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_bytes(b'smiles,name\nC,"a\nb\0\tc "\nCC,\0\nCCC,x\xe2\x80\xafy\nCCCC,same\nCCCC,same\n')
    records = _read(path, options)
    assert [record.id for record in records] == ["a b c", "a.csv:4", "x\u202fy", "same", "same"]
    pq.write_table(pa.table({"id": [record.id for record in records]}), tmp_path / "ids.parquet")


def _outcomes(path, options):
    """What became of each record: its id and SMILES, or the number of its line and the reason."""
    return [
        (r.id, r.structure.text) if isinstance(r, Record) else (r.place.number, r.reason) for r in _read(path, options)
    ]


def test_a_quote_that_is_never_closed_costs_its_own_row(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text('smiles,name\nC,a\nCC,"b\n' + "CCC,c\n" * 10_000)
    first, lost, *others = _read(path, options)
    assert (first.id, lost.reason, lost.place.number) == ("a", "syntax", 3)
    assert "a quote that opens in line 3 is not closed before line 4, which is no part of its cell" in lost.message
    assert _ids(others) == [("c", number) for number in range(4, 10_004)]


@pytest.mark.parametrize("names", ["name,smiles,mass", "name;smiles;mass"])
@pytest.mark.parametrize("closing", ['m60" x', 'm60"', '"m60', '"m60"'])
def test_a_quote_that_another_row_closes_costs_its_own_row(tmp_path, options, names, closing):
    rows = [[f"m{n}", "C" * n, "1"] for n in range(2, 202)]
    rows[8][0] = '"m10 open quote'
    rows[58][0] = closing
    path = tmp_path / "a.csv"
    path.write_text("\n".join([names, *(names[4].join(row) for row in rows)]))
    records = _read(path, options)
    assert [record.place.number for record in records] == list(range(2, 202))
    assert [(r.reason, r.place.number) for r in records if isinstance(r, Refused)][:1] == [("syntax", 10)]
    assert sum(isinstance(record, Refused) for record in records) == (2 if closing == '"m60' else 1)


def test_a_quote_that_is_open_where_the_file_ends_is_told(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text('smiles,name,note\nC,a,\nCC,b,"as drawn\nby hand\nand more')
    first, lost, *_ = _read(path, options)
    assert (first.id, lost.reason, lost.place.number) == ("a", "syntax", 3)
    assert "a quote that opens in line 3 is not closed up to the end of the file, line 5" in lost.message
    path.write_text('smiles,name,note\nC,a,\nCC,b,"of two\nlines"\n"CCC\nC",c,\nCCCC,d,"last"')
    a, b, lost, rest, d = _read(path, options)
    assert (a.id, b.id, d.id) == ("a", "b", "d")
    assert "its SMILES goes on to line 6: a quote that opens in line 5 closes there" in lost.message
    assert rest.structure.text == 'C"'  # a line that nothing could be made of, for RDKit to refuse


def test_cells_of_several_lines_are_read(tmp_path, options):
    """Notes with commas, blank lines and quotes of their own, and a molfile longer than any note."""
    ring = Chem.MolFromSmiles("C" * 120)
    molfile = Chem.MolToMolBlock(ring)
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["smiles", "name", "note", "molfile"])
        writer.writerow(["C", "a", 'drawn\n\nby hand,\nas "methane", which\nit, is, so', molfile])
        writer.writerow(["CC", "b\nc", "", ""])
        writer.writerow(["CCC\n", "d", "", ""])
    assert _outcomes(path, options) == [("a", "C"), ("b c", "CC"), ("d", "CCC")]


def test_prose_with_commas_makes_no_rows(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text(
        'smiles,name,note\nCCO,ethanol,"LD50 given.\nIn mice, rats, dogs"\nCCN,ethylamine,plain\n'
        'CCCO,propanol,"two\nI, for one, like it"\nCCCC,butane,x\n'
    )
    assert _outcomes(path, options) == [
        ("ethanol", "CCO"), ("ethylamine", "CCN"), ("propanol", "CCCO"), ("butane", "CCCC")
    ]  # fmt: skip


def test_a_quote_that_a_row_without_a_smiles_lies_below_costs_its_own_row(tmp_path, options):
    """Most of what it takes in are rows; so it is where the rows have blanks behind their separators."""
    rows = ["C,a,1", 'CC,"b,2', "CCC,c,3", ",d,4", "N/A,e,5", "CCCC,f,6", 'CCO,g",7', "CCN,h,8"]
    path = tmp_path / "a.csv"
    for text in ("\n".join(rows), "\n".join(rows).replace(",", ", ").replace(', "', ',"')):
        path.write_text(f"smiles,name,mass\n{text}")
        records = _read(path, options)
        assert [record.place.number for record in records] == list(range(2, 10))
        assert [(r.reason, r.place.number) for r in records if isinstance(r, Refused)] == [("syntax", 3)]


_PROSE = st.lists(
    st.tuples(
        st.sampled_from(["I", "In", "C", "So", "CCO", "20", "rats", "boils at 20", 'the "Co"', '"', "[Na+]", ""]),
        st.sampled_from([" ", ", ", "; ", "\n", '"\n', ".\n\n", ' "', ""]),
    ),
    max_size=8,
).map(lambda words: "".join(chain.from_iterable(words)).strip(" "))


@settings(max_examples=300, deadline=None)
@given(
    columns=st.integers(2, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
    cells=st.lists(_PROSE, min_size=9, max_size=30),
    dialect=st.tuples(st.sampled_from(",;"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
)
def test_what_csv_writes_comes_back(columns, cells, dialect):
    """Rows of a SMILES and of prose, with quotes, separators and lines in it, come back equal, each by itself."""
    (width, smiles_at), (delimiter, quoting) = columns, dialect
    rows = [[*cells[n : n + width - 1]] for n in range(0, len(cells) - width + 2, width - 1)]
    for row in rows:
        row.insert(smiles_at, "c1ccccc1")
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(rows)
    lines = text.getvalue().removesuffix("\n").split("\n")
    assert [row for _, row in table_rows(Lines([lines]), delimiter, width, smiles_at)] == rows


def test_quotes_in_tables_with_tabs_are_characters_where_they_quote_nothing(tmp_path, options):
    rows = ['C\t"N-methyl-thing\tx', *(f"{'C' * n}\tm{n}\ty" for n in range(2, 6)), 'CCCCCO\tm6"\tz']
    rows += ['CO\t"of two\nlines"\tx', 'CN\t"a\tb"\tc', 'N\t"c\td', 'O\t"e"" f"\tg', 'CF\t"last\tq']
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(["smiles\tname\tnote", *rows]))
    kept = [("m2", "CC"), ("m3", "CCC"), ("m4", "CCCC"), ("m5", "CCCCC"), ('m6"', "CCCCCO"), ("of two lines", "CO")]
    assert _outcomes(path, options) == [
        ('"N-methyl-thing', "C"), *kept, ("a b", "CN"), ('"c', "N"), ('e" f', "O"), ('"last', "CF"),
    ]  # fmt: skip


def test_a_quote_costs_little_memory(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text('smiles,name\nC,"a\n' + ("x" * 1000 + "\n") * 20_000)
    tracemalloc.start()
    count = sum(1 for _ in read_records(str(path), options))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_001
    assert peak < 8 << 20


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


@pytest.mark.timeout(60)
def test_a_quote_that_opens_another_in_every_line_costs_no_more_than_its_row(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text("smiles,id,note\n" + 'a","\n' * 30_000)  # each line closes a cell, and opens one
    assert len(_outcomes(path, options)) == 30_000


@pytest.mark.timeout(60)
def test_heads_without_ends_cost_no_more_than_they_are_long(tmp_path, options):
    path = tmp_path / "a.sdf"
    head = "x\n  p\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\n"
    path.write_text(head + ">  <x>\n" + head.replace("\n\n", "\nc\n") * 100_000 + "$$$$\n")
    assert _outcomes(path, options)
