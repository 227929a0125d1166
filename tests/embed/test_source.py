from __future__ import annotations

import dataclasses
import gc
import gzip
import io
import pickle
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem

from mmsa_dist.config.load import load_config
from mmsa_dist.embed import Embedder, export_embeddings, reading
from mmsa_dist.embed.source import Embedded, FileRows, RecordPiece, ShardRows, Source, open_source
from mmsa_shards.errors import PrepareError
from mmsa_shards.read import Record, Structure
from mmsa_shards.standardize import standardize_many
from tests.fixtures.embedders import DRUGS, random_embedder
from tests.fixtures.file_server import files_on_a_server
from tests.fixtures.loopback import Handler, on_loopback
from tests.fixtures.standardization import DEFAULT


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder(batch_size=3)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "drugs.csv"
    lines = [f"{smiles},CCO,D{n},E{n}" for n, smiles in enumerate([*DRUGS[:4], "junk", *DRUGS[4:]])]
    path.write_text("\n".join(["smiles,product,name,code", *lines, ""]))
    return path


def test_what_a_path_names(table: Path, tiny_shards: Path) -> None:
    assert isinstance(open_source(tiny_shards), ShardRows)
    assert isinstance(open_source(str(table)), FileRows)
    assert isinstance(open_source([str(table), str(table)]), FileRows)


def of(source: Source, rows: int, embedder: Embedder) -> list[Embedded]:
    return [piece.embed(embedder) for piece in source.pieces(rows)]


def smiles_of(*paths: Path | str, out: Path | str = "") -> list[str]:
    (piece,) = open_source(paths, out=out).pieces(100)
    assert isinstance(piece, RecordPiece)
    return [record.structure.text for record in piece.records if isinstance(record, Record)]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    for name, smiles in (
        ("b.smi", "CC"),
        ("below/c.smi", "CCC"),
        ("a[1].smi", "C"),
        ("._b.smi", "N"),
        (".checkpoints/b.smi", "N"),
        ("vectors/part.smi", "O"),
        ("readme.txt", "none"),
        ("backup.tar", "none"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{smiles}\n")
    return folder


def test_a_folder_or_a_pattern_stands_for_its_files_in_order_of_their_paths(library: Path) -> None:
    assert smiles_of(library) == ["C", "CC", "CCC", "O"], "hidden files are not among them"
    assert smiles_of(library / "*") == smiles_of(library / "*.smi") == ["C", "CC"]
    assert smiles_of(library / "b.smi", library / "a[1].smi", library / "._b.smi") == ["CC", "C", "N"]
    assert smiles_of(library / ".checkpoints" / "*.smi") == ["N"]
    for nothing in (library / "*.sdf", library / ".checkpoints" / "*.sdf", ""):
        with pytest.raises(PrepareError, match=r"matches no file that can be read|the name of an input is empty"):
            open_source(nothing)


def test_the_result_is_no_source(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert smiles_of(library, out=library / "vectors") == ["C", "CC", "CCC"]
    assert smiles_of(library / "**" / "*.smi", out=library / "vectors") == ["C", "CC", "CCC"]
    monkeypatch.chdir(library)
    assert smiles_of(".", out="vectors") == ["C", "CC", "CCC"]


def test_earlier_results_are_no_source(embedder: Embedder, library: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Finished or not, below a folder or by a pattern; but a table that is no part of an export is one, and so is a
    part that is named."""
    export_embeddings(embedder, library / "b.smi", library / "earlier")
    export_embeddings(embedder, library / "b.smi", library / "unfinished")
    (library / "unfinished" / "_export.json").unlink()
    (library / "spark").mkdir()
    pq.write_table(pa.table({"smiles": ["CCCCC"]}), library / "spark" / "part-00000.parquet")
    earlier = library / "earlier" / "part-00000.parquet"
    of_all = ["C", "CC", "CCC", "CCCCC", "O"]
    assert smiles_of(library, out=library / "now") == of_all
    assert f"{library}: left out are vectors that mmsa embed wrote (file://{earlier} and 1 more)" in caplog.text
    assert smiles_of(library / "**" / "*.parquet") == ["CCCCC"]
    assert smiles_of(earlier) == ["CC"]
    assert smiles_of(library / "*" / "part-*.parquet") == ["CC", "CCCCC", "CC"]
    assert smiles_of(library / "spark") == ["CCCCC"]
    for nothing in (library / "earlier", library / "earlier" / "*"):
        with pytest.raises(PrepareError, match=r"only vectors that mmsa embed wrote \(.*part-00000\.parquet\): to"):
            open_source(nothing)


def test_a_folder_of_shards_is_embedded_alone(table: Path, tiny_shards: Path) -> None:
    with pytest.raises(ValueError, match="shards is a folder of shards, which is embedded alone"):
        open_source([table, tiny_shards])


@pytest.mark.parametrize("rows", [1, 4, 5, 7, 100])
@pytest.mark.parametrize("kind", ["file", "shards"])
def test_pieces_are_all_rows_in_order(embedder: Embedder, table: Path, tiny_shards: Path, kind: str, rows: int) -> None:
    source = open_source(table if kind == "file" else tiny_shards)
    (whole,) = of(source, 1000, embedder)
    total = 12 if kind == "file" else 55
    assert source.total == total
    assert len(whole[0]) == len(whole[1]) == total
    pieces = list(source.pieces(rows))
    assert [len(piece) for piece in pieces] == [min(rows, total - start) for start in range(0, total, rows)]
    made = [piece.embed(embedder) for piece in pieces]
    assert [row for names, _ in made for row in names] == whole[0]
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in made]), whole[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_a_piece_is_the_same_alone_and_in_another_process(
    embedder: Embedder, table: Path, tiny_shards: Path, kind: str
) -> None:
    """What is computed together sets the last bits, so a piece has to be computed as if there were no other."""
    source = open_source(table if kind == "file" else tiny_shards)
    for piece, (rows, vectors) in zip(source.pieces(5), of(source, 5, embedder), strict=True):
        again = pickle.loads(pickle.dumps(piece)).embed(embedder)  # noqa: S301
        assert again[0] == rows
        np.testing.assert_array_equal(again[1], vectors)


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_progress_is_told_within_a_piece(
    embedder: Embedder, table: Path, tiny_shards: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_ROWS_AT_ONCE", 3)
    piece = next(open_source(table if kind == "file" else tiny_shards).pieces(10))
    told: list[int] = []
    piece.embed(embedder, told.append)
    assert told == [3, 6, 9, 10]


def write_sdf(path: Path, n: int) -> None:
    path.write_text("".join(f"{Chem.MolToMolBlock(Chem.MolFromSmiles('C' * (k % 9 + 1)))}$$$$\n" for k in range(n)))


def test_how_many_rows_there_are_is_known_before_they_are_read(tmp_path: Path) -> None:
    """For the progress of an export: exact where files hold nothing but rows, and more exact the more are read."""
    pq.write_table(pa.table({"smiles": ["CC"] * 40}), tmp_path / "a.parquet", row_group_size=7)
    with gzip.open(tmp_path / "b.smi.gz", "wt", newline="") as file:
        file.write("\r\n".join(["CCO"] * 60))
    (tmp_path / "c.csv").write_text('smiles,name\nCC,"two\nlines"\n\n' + "CCC,x\n" * 20)
    write_sdf(tmp_path / "d.sdf", 30)
    (tmp_path / "e.mol").write_text(Chem.MolToMolBlock(Chem.MolFromSmiles("CC")))
    source = open_source(tmp_path)
    header, wrapped, blank = 1, 1, 1
    assert source.total == 40 + 60 + 21 + 30 + 1 + header + wrapped + blank
    totals = [(len(piece), source.total) for piece in source.pieces(10)]
    assert sum(rows for rows, _ in totals) == 152
    assert totals[:10] == [(10, 155)] * 10, "rows of tables and lines that are not yet read"
    assert {total for _, total in totals[10:]} == {152}


def test_how_many_rows_there_are_on_standard_input(stdin: Callable[[bytes], None]) -> None:
    stdin(gzip.compress(b"CCO\nCCC\nCC"))
    assert open_source("-").total == 3


@pytest.mark.parametrize("spoil", ["cut", "noise"])
def test_damage_that_is_allowed_is_no_hindrance(tmp_path: Path, spoil: str) -> None:
    packed = gzip.compress("".join(f"{'C' * (n % 50 + 1)}O a{n}\n" for n in range(50_000)).encode())
    middle = len(packed) // 2
    damaged = packed[:middle] if spoil == "cut" else packed[:middle] + bytes(99) + packed[middle + 99 :]
    (tmp_path / "a.smi.gz").write_bytes(damaged)
    source = open_source(tmp_path / "a.smi.gz", dataclasses.replace(load_config().prepare, allow_truncated=True))
    read = sum(len(piece) for piece in source.pieces(1000))
    assert source.total == read < 50_000
    (tmp_path / "a.smi.gz").write_bytes(damaged[:-1] + b"?")
    other = open_source(tmp_path / "a.smi.gz", dataclasses.replace(load_config().prepare, allow_truncated=True))
    assert other.digest != source.digest, "what lies behind the damage is of the file, too"


def test_a_molfile_that_cannot_be_read_is_refused_as_in_a_preparation(embedder: Embedder, tmp_path: Path) -> None:
    """By the same words, and within the guard that a crash of RDKit does not leave."""
    good = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO"))
    texts = {
        "none": good,
        "syntax": good.replace("  1  2  1  0", "  1  9  1  0"),  # a bond to an atom that is not there
        "valence": Chem.MolToMolBlock(Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False), kekulize=False),
        "aromaticity": Chem.MolToMolBlock(Chem.MolFromSmiles("c1cccc1", sanitize=False), kekulize=False),
    }
    (tmp_path / "a.sdf").write_text("".join(f"{text}$$$$\n" for text in texts.values()))
    ((rows, _),) = of(open_source(tmp_path / "a.sdf"), 10, embedder)
    assert [row.reason or "none" for row in rows] == list(texts)
    as_prepared = standardize_many([Structure("molfile", text) for text in texts.values()], DEFAULT)
    assert [getattr(parent, "reason", "none") for parent in as_prepared] == list(texts)
    assert [row.smiles for row in rows] == ["CCO", None, None, None]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


@pytest.mark.parametrize("pack", [bytes, partial(gzip.compress, mtime=0)], ids=["text", "gzip"])
def test_standard_input(
    embedder: Embedder, stdin: Callable[[bytes], None], pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    text = "".join(f"{smiles}\n" for smiles in DRUGS).encode()
    (tmp_path / "more.smi").write_text("CCO ethanol\n")
    stdin(pack(text))
    source = open_source(["-", str(tmp_path / "more.smi")])
    ((rows, vectors),) = of(source, 100, embedder)
    assert [row.id for row in rows] == [*(f"stdin.smi:{n + 1}" for n in range(11)), "ethanol"]
    np.testing.assert_allclose(vectors, embedder.transform([*DRUGS, "CCO"]), atol=1e-6, rtol=0)
    stdin(pack(text))
    assert open_source(["-", str(tmp_path / "more.smi")]).digest == source.digest
    stdin(pack(text + b"C"))
    assert open_source(["-", str(tmp_path / "more.smi")]).digest != source.digest


def test_standard_input_is_kept_no_longer_than_it_is_used(
    stdin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stdin(b"CCO\n")
    source = open_source("-")
    assert len(list(tmp_path.iterdir())) == 1
    del source
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_standard_input_that_cannot_be_used_is_said(stdin: Callable[[bytes], None]) -> None:
    stdin(b"")
    with pytest.raises(ValueError, match=r"^standard input holds no records"):
        open_source("-")
    lines = "".join(f"{'C' * (n % 50 + 1)}O\n" for n in range(200_000)).encode()
    stdin(gzip.compress(lines)[:-20])
    with pytest.raises(ValueError, match=r"^standard input ends in the middle after"):
        list(open_source("-").pieces(50_000))
    with pytest.raises(ValueError, match=r"standard input \(-\) is named 2 times"):
        open_source(["-", "-"])


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_on_a_server(embedder: Embedder, table: Path, ranges: bool) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    with files_on_a_server(table.parent, ranges) as url:
        source = open_source(f"{url}/{table.name}")
        assert source.digest == open_source(table).digest
        ((rows, vectors),) = of(source, 100, embedder)
    ((expected, expected_vectors),) = of(open_source(table), 100, embedder)
    assert rows == expected
    np.testing.assert_array_equal(vectors, expected_vectors)


def test_a_server_that_refuses_is_said() -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")

    class Refuses(Handler):
        def answer(self, *, body: bool) -> None:
            self.begin(403, 0)

    with on_loopback(Refuses) as url, pytest.raises(PrepareError, match=rf"cannot reach {url}/secret\.smi \(403"):
        open_source(f"{url}/secret.smi")


def test_the_digest_is_that_of_what_is_read(table: Path) -> None:
    options = load_config().prepare
    digest = FileRows([str(table)], options).digest
    assert FileRows([str(table)], options).digest == digest
    others = [
        FileRows([str(table)], dataclasses.replace(options, smiles_column="product")),
        FileRows([str(table)], dataclasses.replace(options, id_column="code")),
        FileRows([str(table), str(table)], options),
    ]
    table.write_text(table.read_text().replace("D3", "D9"))
    others.append(FileRows([str(table)], options))
    assert len({digest, *(other.digest for other in others)}) == 5


def test_columns_are_taken_by_name(embedder: Embedder, table: Path) -> None:
    options = dataclasses.replace(load_config().prepare, smiles_column="product", id_column="code")
    ((rows, _),) = of(open_source(table, options), 100, embedder)
    assert {row.smiles for row in rows} == {"CCO"}
    assert [row.id for row in rows[:2]] == ["E0", "E1"]
