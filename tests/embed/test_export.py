from __future__ import annotations

import gzip
import importlib.metadata
import io
import json
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.base import clone

from mmsa_dist.embed import Embedder, ExportError, ExportSummary, export_embeddings, read_embeddings
from mmsa_dist.embed import export as export_module
from mmsa_dist.embed import part as part_module
from mmsa_dist.embed.file_facts import facts_of
from mmsa_shards.folder import Folder
from mmsa_shards.manifest import Manifest
from mmsa_shards.shard import read_block
from tests.fixtures.download_server import serving
from tests.fixtures.embedders import DRUGS, random_embedder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder(batch_size=4)


@pytest.fixture
def table(tmp_path) -> Path:
    lines = [f"{smiles},D{n}" for n, smiles in enumerate(DRUGS)]
    lines[3:3] = ["junk,BAD", ",EMPTY"]
    path = tmp_path / "drugs.csv"
    path.write_text("\n".join(["smiles,name", *lines, ""]))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every part, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


def rows(folder: Path) -> list[dict[str, object]]:
    return [row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_row_for_every_input_row_in_order(embedder, table, tmp_path, dtype):
    seen = []
    summary = export_embeddings(
        embedder, table, tmp_path / "out", dtype=dtype, rows_per_part=5, progress=lambda *at: seen.append(at)
    )
    assert (summary.rows, summary.ok, summary.parts) == (13, 11, 3)
    assert summary.reasons == {"syntax": 1, "empty": 1}
    assert seen == [(0, 13), (5, 13), (5, 13), (10, 13), (10, 13), (13, 13), (13, 13)]
    written = rows(tmp_path / "out")
    names = [f"D{n}" for n in range(11)]
    assert [row["id"] for row in written] == [*names[:3], "BAD", "EMPTY", *names[3:]]
    assert [row["ok"] for row in written] == [True] * 3 + [False] * 2 + [True] * 8
    assert [row["reason"] for row in written][3:6] == ["syntax", "empty", None]
    assert written[3]["smiles"] == "junk"
    assert written[3]["embedding"] is None
    assert {row["inchikey"] for row in written} == {None}, "not asked for"
    schema = pq.read_schema(tmp_path / "out" / "part-00000.parquet")
    assert schema.field("embedding").type.list_size == 16
    assert schema.field("embedding").type.value_type == getattr(pa, dtype)()
    assert json.loads(schema.metadata[b"mmsa_origin"])["model"] == embedder.digest
    tolerance = 1e-3 if dtype == "float16" else 1e-6
    read = read_embeddings(tmp_path / "out")
    np.testing.assert_allclose(read.vectors, embedder.transform(DRUGS), atol=tolerance, rtol=tolerance)
    assert read.ids == names


def test_inchikeys_of_smiles_where_asked_for(embedder, table, tmp_path):
    keyed = clone(embedder).set_params(inchikeys=True)
    export_embeddings(embedder, table, tmp_path / "plain", dtype="float32")
    export_embeddings(keyed, table, tmp_path / "keyed", dtype="float32")
    plain, named = read_embeddings(tmp_path / "plain"), read_embeddings(tmp_path / "keyed")
    assert named.inchikeys[0] == "BSYNRYMUTXBXSQ-UHFFFAOYSA-N"  # aspirin
    assert None not in named.inchikeys
    np.testing.assert_array_equal(named.vectors, plain.vectors)
    with pytest.raises(ExportError, match="inchikeys"):
        export_embeddings(keyed, table, tmp_path / "plain", dtype="float32")


def test_molecules_as_they_are_given_are_another_export(embedder, tmp_path):
    (tmp_path / "salts.smi").write_text("CC(=O)[O-].[Na+] A\nCC(=O)O B\n")
    as_given = clone(embedder).set_params(standardize=False)
    export_embeddings(as_given, tmp_path / "salts.smi", tmp_path / "out", dtype="float32")
    read = read_embeddings(tmp_path / "out")
    assert read.smiles == ["CC(=O)[O-].[Na+]", "CC(=O)O"]
    np.testing.assert_allclose(read.vectors, as_given.transform(read.smiles), atol=1e-6)
    with pytest.raises(ExportError, match="standardize"):
        export_embeddings(embedder, tmp_path / "salts.smi", tmp_path / "out", dtype="float32")


def test_shards_are_read_without_parsing(embedder, tiny_shards, tmp_path):
    given = clone(embedder).set_params(conformers="given")
    summary = export_embeddings(given, tiny_shards, tmp_path / "out", dtype="float32", rows_per_part=9)
    manifest = Manifest.load(tiny_shards)
    assert summary.rows == summary.ok == manifest.molecules("train") + manifest.molecules("val")
    read = read_embeddings(tmp_path / "out")
    blocks = [
        read_block(tiny_shards, shard, number)
        for split in ("train", "val")
        for shard in manifest.split(split)
        for number in range(len(shard.blocks))
    ]
    assert read.ids == [name for block in blocks for name in block["id"].to_pylist()]
    expected = np.concatenate([given.embed_block(block)[0] for block in blocks])
    np.testing.assert_allclose(read.vectors, expected, atol=1e-6, rtol=0)
    # A molecule has the same vector whether it comes from shards or as SMILES, where 3D is left out of both.
    export_embeddings(embedder, tiny_shards, tmp_path / "flat", dtype="float32")
    flat = read_embeddings(tmp_path / "flat")
    np.testing.assert_allclose(flat.vectors, embedder.transform(flat.smiles), atol=1e-6, rtol=0)


def test_conformers_of_shards_are_not_taken_from_files(embedder, table, tmp_path):
    given = clone(embedder).set_params(conformers="given")
    with pytest.raises(ValueError, match=f"takes those of shards, not of {table}; prepare .*conformers='etkdg'"):
        export_embeddings(given, table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


STEPS = {"groups": "standardize", "salts": "strip", "charges": "neutralize", "tautomers": "keep", "isotopes": "keep"}


@pytest.mark.parametrize("options", [{}, STEPS], ids=["options unknown", "standardized"])
def test_shards_of_standardized_molecules_are_not_as_given(embedder, tiny_shards, tmp_path, options):
    replace(Manifest.load(tiny_shards), options=options).save(tiny_shards)
    as_given = clone(embedder).set_params(standardize=False)
    why = "groups=standardize, salts=strip, charges=neutralize" if options else "as always"
    with pytest.raises(ValueError, match=rf"those of {tiny_shards} were standardized .* \({why}.*\); leave embed\.st"):
        export_embeddings(as_given, tiny_shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_as_drawn_are_as_given(embedder, tiny_shards, tmp_path):
    replace(Manifest.load(tiny_shards), options=dict.fromkeys(STEPS, "keep")).save(tiny_shards)
    as_given = clone(embedder).set_params(standardize=False)
    assert export_embeddings(as_given, tiny_shards, tmp_path / "out").origin.standardize is False


def test_shards_of_another_standardization_are_warned_of(embedder, tiny_shards, tmp_path, caplog):
    manifest = Manifest.load(tiny_shards)
    replace(manifest, options=STEPS | {"max_atoms": 60}).save(tiny_shards)
    export_embeddings(embedder, tiny_shards, tmp_path / "same")
    assert caplog.messages == []
    replace(manifest, options=STEPS | {"salts": "keep", "isotopes": "remove"}).save(tiny_shards)
    export_embeddings(embedder, tiny_shards, tmp_path / "other")
    (said,) = caplog.messages
    assert "was prepared with salts=keep, isotopes=remove, the shards of the model with salts=strip, isotopes=k" in said


def test_several_files_and_molfiles(embedder, tmp_path):
    from rdkit import Chem

    (tmp_path / "a.smi").write_text("CCO ethanol\n")
    block = Chem.MolToMolBlock(Chem.MolFromSmiles(DRUGS[2]))
    with gzip.open(tmp_path / "b.sdf.gz", "wt") as file:
        file.write(f"ibuprofen{block}$$$$\nbroken\n  x\n\nM  END\n$$$$\n")
    summary = export_embeddings(
        embedder, [str(tmp_path / "a.smi"), str(tmp_path / "b.sdf.gz")], tmp_path / "out", dtype="float32"
    )
    assert (summary.rows, summary.ok) == (3, 2)
    read = read_embeddings(tmp_path / "out")
    assert read.ids == ["ethanol", "ibuprofen"]
    np.testing.assert_allclose(read.vectors, embedder.transform(["CCO", DRUGS[2]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("killed_at", [0, 1, 2])
@pytest.mark.parametrize("kind", ["file", "shards"])
def test_a_killed_export_goes_on(embedder, table, tiny_shards, tmp_path, monkeypatch, killed_at, kind):
    source = table if kind == "file" else tiny_shards
    export_embeddings(embedder, source, tmp_path / "whole", rows_per_part=5)
    write, calls = part_module.write_part, []

    def dying(folder, number, *rest):
        if number == killed_at:
            (folder.path / f".part-{number:05d}.parquet.123.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        calls.append(number)
        write(folder, number, *rest)

    monkeypatch.setattr(part_module, "write_part", dying)
    with pytest.raises(KeyboardInterrupt):
        export_embeddings(embedder, source, tmp_path / "out", rows_per_part=5)
    with pytest.raises(ExportError, match="holds no finished embeddings"):
        read_embeddings(tmp_path / "out")
    monkeypatch.setattr(part_module, "write_part", write)
    summary = export_embeddings(embedder, source, tmp_path / "out", rows_per_part=5)
    assert summary.reused_parts == killed_at == len(calls)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_two_exports_at_once_do_not_touch_each_other(embedder, table, tmp_path, monkeypatch):
    """The second would remove files that the first is writing."""
    write, out = part_module.write_part, tmp_path / "out"

    def beside_another(folder, number, *rest):
        unfinished = out / f".part-{number:05d}.parquet.123.tmp"
        unfinished.write_bytes(b"half")
        with pytest.raises(ExportError, match=f"another export is at work in {out}: wait for its end, or name"):
            export_embeddings(embedder, table, out, rows_per_part=5)
        assert unfinished.exists()
        unfinished.unlink()
        write(folder, number, *rest)

    monkeypatch.setattr(part_module, "write_part", beside_another)
    assert export_embeddings(embedder, table, out, rows_per_part=5).parts == 3
    assert not list(out.glob(".*"))


def test_killed_after_the_last_part(embedder, table, tmp_path, monkeypatch):
    def dying(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "write_summary", dying)
        with pytest.raises(KeyboardInterrupt):
            export_embeddings(embedder, table, tmp_path / "out", rows_per_part=5)
    whole, seen = contents(tmp_path / "out"), []
    summary = export_embeddings(
        embedder, table, tmp_path / "out", rows_per_part=5, progress=lambda *at: seen.append(at)
    )
    assert (summary.rows, summary.parts, summary.reused_parts) == (13, 3, 3)
    assert seen == [(13, 13)]
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("lost", [[0], [1], [2], [0, 2]], ids=str)
@pytest.mark.parametrize("kind", ["file", "shards"])
def test_a_lost_part_is_made_again(embedder, table, tiny_shards, tmp_path, lost, kind):
    def export() -> ExportSummary:
        source = table if kind == "file" else tiny_shards
        return export_embeddings(embedder, source, tmp_path / "out", rows_per_part=5, dtype="float32")

    first = export()
    whole = contents(tmp_path / "out")
    for number in lost:
        (tmp_path / "out" / f"part-{number:05d}.parquet").unlink()
    again = export()
    assert again.reused_parts == first.parts - len(lost)
    assert (again.rows, again.reasons, again.parts) == (first.rows, first.reasons, first.parts)
    assert contents(tmp_path / "out") == whole


def test_a_part_that_cannot_be_embedded_leaves_the_others(embedder, table, tmp_path, monkeypatch):
    embed, batches = Embedder.embed, []

    def failing(self, molecules, progress):
        batches.append(molecules)
        if len(batches) == 2:
            raise RuntimeError("the machine is on fire")
        return embed(self, molecules, progress)

    whole = export_embeddings(embedder, table, tmp_path / "whole", rows_per_part=5, dtype="float32")
    monkeypatch.setattr(Embedder, "embed", failing)
    with pytest.raises(RuntimeError, match="on fire"):
        export_embeddings(embedder, table, tmp_path / "out", rows_per_part=5, dtype="float32")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["part-00000.parquet"]
    monkeypatch.setattr(Embedder, "embed", embed)
    summary = export_embeddings(embedder, table, tmp_path / "out", rows_per_part=5, dtype="float32")
    assert (summary.rows, summary.reused_parts) == (whole.rows, 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_search_keeps_there_is_left_alone(embedder, table, tmp_path):
    first = export_embeddings(embedder, table, tmp_path / "out")
    (tmp_path / "out" / "_index.faiss").write_bytes(b"lists")
    assert export_embeddings(embedder, table, tmp_path / "out") == first
    assert (tmp_path / "out" / "_index.faiss").read_bytes() == b"lists"


def test_what_is_done_is_not_done_twice(embedder, table, tmp_path, monkeypatch):
    first = export_embeddings(embedder, table, tmp_path / "out")
    monkeypatch.setattr(part_module, "write_part", lambda *_: pytest.fail("wrote again"))
    assert export_embeddings(embedder, table, tmp_path / "out") == first


def test_another_model_or_input_is_not_mixed_in(embedder, table, tmp_path):
    export_embeddings(embedder, table, tmp_path / "out")
    with pytest.raises(ExportError, match=r"another origin \(model was"):
        export_embeddings(random_embedder(1), table, tmp_path / "out")
    with pytest.raises(ExportError, match="view was 'structure', is now 'unified'"):
        export_embeddings(clone(embedder).set_params(view="unified"), table, tmp_path / "out")
    table.write_text(table.read_text() + "CCCC,late\n")
    with pytest.raises(ExportError, match="source was"):
        export_embeddings(embedder, table, tmp_path / "out")


def test_molecules_of_another_rdkit_are_not_mixed_in(embedder, table, tiny_shards, tmp_path, monkeypatch):
    version = importlib.metadata.version("rdkit")
    export_embeddings(embedder, table, tmp_path / "of file")
    export_embeddings(embedder, tiny_shards, tmp_path / "of shards")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1999.9.1")
    with pytest.raises(ExportError, match=rf"read_by was 'rdkit {version}, .*, is now 'rdkit 1999\.9\.1, the recipe"):
        export_embeddings(embedder, table, tmp_path / "of file")
    # What shards hold is read by nothing again.
    assert export_embeddings(embedder, tiny_shards, tmp_path / "of shards").rows == 55


def test_exports_of_before_are_read_and_not_mixed_in(embedder, table, tmp_path):
    export_embeddings(embedder, table, tmp_path / "out")
    part, summary = tmp_path / "out" / "part-00000.parquet", tmp_path / "out" / "_export.json"
    content = pq.read_table(part)
    origin = json.loads(content.schema.metadata[b"mmsa_origin"])
    assert origin.pop("read_by").startswith("rdkit ")
    pq.write_table(content.replace_schema_metadata({"mmsa_origin": json.dumps(origin)}), part)
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"origin": origin}))
    assert len(read_embeddings(tmp_path / "out").ids) == 11
    with pytest.raises(ExportError, match="read_by was '', is now 'rdkit "):
        export_embeddings(embedder, table, tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_said(embedder, table):
    with pytest.raises(ExportError, match=r"the folder /proc/x cannot be made \(.+\); name one where you may write"):
        export_embeddings(embedder, table, "/proc/x")


def test_a_wrong_device_leaves_nothing(embedder, table, tmp_path):
    with pytest.raises(ValueError, match="device='gpu' is no device"):
        export_embeddings(clone(embedder).set_params(device="gpu"), table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_the_result_lies_in_is_finished_too(embedder, table, tmp_path):
    first = export_embeddings(embedder, tmp_path, tmp_path / "out", rows_per_part=5)
    (tmp_path / "out" / "part-00001.parquet").unlink()
    again = export_embeddings(embedder, tmp_path, tmp_path / "out", rows_per_part=5)
    assert (first.rows, again.rows, again.parts - again.reused_parts) == (13, 13, 1)


def test_other_files_are_never_touched(embedder, table, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds other files than embeddings \(notes.txt"):
        export_embeddings(embedder, table, tmp_path / "out")
    with pytest.raises(ExportError, match="is a file"):
        export_embeddings(embedder, table, table)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    (tmp_path / "foreign").mkdir()
    pq.write_table(pa.table({"id": ["mine"]}), tmp_path / "foreign" / "part-00000.parquet")
    with pytest.raises(ExportError, match=r"part-00000\.parquet is not a part of an embedding export"):
        export_embeddings(embedder, table, tmp_path / "foreign")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "int8"}, "dtype='int8' must be one of float16, float32"),
        ({"format": "lance"}, "format='lance' must be one of parquet, npy"),
        ({"rows_per_part": 0}, "rows_per_part=0"),
    ],
)
def test_wrong_options_are_said(embedder, table, tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        export_embeddings(embedder, table, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_bad_input_leaves_nothing_behind(embedder, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        export_embeddings(embedder, tmp_path / "none.csv", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder matches no file that can be read"):
        export_embeddings(embedder, tmp_path / "folder", tmp_path / "out")
    (tmp_path / "folder" / "train-00000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        export_embeddings(embedder, tmp_path / "folder", tmp_path / "out")
    (tmp_path / "empty.smi").write_text("")
    with pytest.raises(ValueError, match="holds no records"):
        export_embeddings(embedder, tmp_path / "empty.smi", tmp_path / "out")
    (tmp_path / "bare.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="its columns are 'a', 'b'"):
        export_embeddings(embedder, tmp_path / "bare.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_too_large_for_float16_are_an_error(embedder, table, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Embedder, "_infer", lambda self, block: (np.full((block.num_rows, 16), 1e5), np.ones(block.num_rows, bool))
    )
    with pytest.raises(ExportError, match="too large for float16; export with dtype float32"):
        export_embeddings(embedder, table, tmp_path / "out")


def test_a_lost_part_is_noticed(embedder, table, tmp_path):
    export_embeddings(embedder, table, tmp_path / "out", rows_per_part=5)
    (tmp_path / "out" / "part-00001.parquet").unlink()
    with pytest.raises(ExportError, match=r"lacks part-00001\.parquet"):
        read_embeddings(tmp_path / "out")


def test_rows_without_finite_numbers_are_not_ok(table, tmp_path):
    broken = random_embedder(5, batch_size=4)
    with torch.no_grad():
        next(broken.pretrained.model.parameters()).fill_(torch.nan)
    summary = export_embeddings(broken, table, tmp_path / "out")
    assert (summary.rows, summary.ok) == (13, 0)
    assert summary.reasons == {"not_finite": 11, "syntax": 1, "empty": 1}
    assert read_embeddings(tmp_path / "out").vectors.shape == (0, 16)


@pytest.mark.parametrize("place", ["memory", "file"])
def test_input_and_output_by_url(embedder, table, tmp_path, place):
    export_embeddings(embedder, table, tmp_path / "here", rows_per_part=5)
    root = f"memory://{tmp_path.name}" if place == "memory" else f"file://{tmp_path}/there"
    with fsspec.open(f"{root}/{table.name}", "wb", auto_mkdir=True) as file:
        file.write(table.read_bytes())
    out = f"{root}/out"
    summary = export_embeddings(embedder, f"{root}/{table.name}", out, rows_per_part=5)
    files, folder = fsspec.core.url_to_fs(out)
    names = sorted(path.rpartition("/")[2] for path in files.ls(folder, detail=False))
    assert names == ["_export.json", *(f"part-0000{n}.parquet" for n in range(3))]
    for name, content in contents(tmp_path / "here").items():
        assert files.cat_file(f"{folder}/{name}") == content
    assert read_embeddings(out).summary == summary
    files.rm_file(f"{folder}/part-00001.parquet")
    with pytest.raises(ExportError, match=r"out lacks part-00001\.parquet"):
        read_embeddings(out)
    again = export_embeddings(embedder, f"{root}/{table.name}", out, rows_per_part=5, format="npy")
    assert (again.reused_parts, again.rows) == (2, 13)
    assert len(np.load(io.BytesIO(files.cat_file(f"{folder}/_vectors.npy")))) == 13
    with pytest.raises(ExportError, match="another origin"):
        export_embeddings(random_embedder(1), f"{root}/{table.name}", out, rows_per_part=5)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_all_vectors_as_one_array(embedder, table, tmp_path, dtype):
    export_embeddings(embedder, table, tmp_path / "out", dtype=dtype, format="npy", rows_per_part=5)
    array = np.load(tmp_path / "out" / "_vectors.npy", mmap_mode="r")
    assert array.dtype == np.dtype(dtype)
    written = rows(tmp_path / "out")
    assert array.shape == (13, 16) == (len(written), len(written[0]["embedding"]))
    for row, vector in zip(written, array, strict=True):
        np.testing.assert_array_equal(vector, np.full(16, np.nan) if row["embedding"] is None else row["embedding"])
    assert ds.dataset(tmp_path / "out").count_rows() == 13, "readers of the folder pass it by"


def test_the_array_may_be_asked_for_later_and_is_made_once(embedder, table, tmp_path, monkeypatch):
    first = export_embeddings(embedder, table, tmp_path / "out", rows_per_part=5)
    path = tmp_path / "out" / "_vectors.npy"
    assert not path.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "take", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_embeddings(embedder, table, tmp_path / "out", rows_per_part=5, format="npy")
    assert not path.exists()
    (tmp_path / "out" / ".npy-killed").mkdir()
    monkeypatch.setattr(part_module, "write_part", lambda *_: pytest.fail("wrote again"))
    assert export_embeddings(embedder, table, tmp_path / "out", rows_per_part=5, format="npy") == first
    written = path.stat().st_mtime_ns
    assert export_embeddings(embedder, table, tmp_path / "out", rows_per_part=5, format="npy") == first
    assert path.stat().st_mtime_ns == written
    assert not list((tmp_path / "out").glob(".*"))


def test_the_array_of_other_vectors_is_removed(embedder, table, tmp_path):
    export_embeddings(embedder, table, tmp_path / "out", format="npy")
    for part in (tmp_path / "out").glob("part-*"):
        part.unlink()
    export_embeddings(random_embedder(1), table, tmp_path / "out")
    assert not (tmp_path / "out" / "_vectors.npy").exists()


def test_rows_of_parquet_are_counted_though_only_the_query_of_a_url_says_what_it_is(tmp_path):
    pq.write_table(pa.table({"smiles": ["CCO", "C\nC"]}), tmp_path / "a.parquet")
    with serving() as server:
        server.put("get?file=a.parquet", (tmp_path / "a.parquet").read_bytes())
        assert facts_of(f"{server.url}get?file=a.parquet").rows == 2


def test_a_change_anywhere_in_a_large_file_makes_it_another(embedder, tmp_path):
    path = tmp_path / "long.smi"
    lines = [f"CCO {'m' * 400}{row:07d}\n" for row in range(8000)]  # of 3 MiB, of which the ends stay
    path.write_text("".join(lines))
    before = facts_of(str(path)).digest
    assert facts_of(str(path)).digest == before
    lines[4000] = lines[4000].replace("CCO", "CCN")
    path.write_text("".join(lines))
    assert facts_of(str(path)).digest != before


def test_a_folder_of_others_is_refused_and_left_as_it_is(embedder, table, tmp_path):
    for name in ("other.txt", ".npy-keep/a", ".part-1.tmp"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("kept")
    with pytest.raises(ExportError, match="other files than embeddings"):
        export_embeddings(embedder, table, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").rglob("*")} == {"other.txt", ".npy-keep", "a", ".part-1.tmp"}
