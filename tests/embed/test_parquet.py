"""The folder of an export as others see it, who have no code of ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from mmsa_dist.embed import Embedder, ExportError, export_embeddings, read_embeddings
from mmsa_dist.embed.npy import write_npy
from mmsa_dist.embed.parquet import read_summary
from mmsa_dist.embed.search import SearchIndex
from tests.fixtures.embedders import DRUGS, random_embedder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder()


@pytest.fixture
def folder(embedder: Embedder, tmp_path: Path) -> Path:
    (tmp_path / "drugs.smi").write_text("".join(f"{smiles} D{n}\n" for n, smiles in enumerate([*DRUGS, "junk"])))
    export_embeddings(embedder, tmp_path / "drugs.smi", tmp_path / "out", rows_per_part=5, dtype="float32")
    return tmp_path / "out"


def test_any_reader_of_parquet_reads_the_whole_folder(embedder: Embedder, folder: Path) -> None:
    table = ds.dataset(folder).to_table()
    assert table.schema.remove_metadata() == pa.schema(
        {
            "id": pa.string(),
            "inchikey": pa.string(),
            "smiles": pa.string(),
            "embedding": pa.list_(pa.float32(), 16),
            "ok": pa.bool_(),
            "reason": pa.string(),
        }
    )
    assert table["id"].to_pylist() == [f"D{n}" for n in range(12)]
    assert table["ok"].to_pylist() == [True] * 11 + [False]
    vectors = np.stack(table["embedding"].to_pylist()[:-1]).astype(np.float32)
    np.testing.assert_allclose(vectors, embedder.transform(DRUGS), atol=1e-6, rtol=0)
    assert pd.read_parquet(folder).shape == (12, 6)


def test_a_damaged_summary_is_said(folder: Path) -> None:
    summary = folder / "_export.json"
    about = json.loads(summary.read_text())
    for content in ("{", "[]", json.dumps({"rows": 1}), json.dumps(about | {"origin": None})):
        summary.write_text(content)
        with pytest.raises(ExportError, match=r"_export\.json cannot be read"):
            read_embeddings(folder)


def test_a_part_with_other_rows_is_said(folder: Path) -> None:
    (folder / "part-00002.parquet").write_bytes((folder / "part-00001.parquet").read_bytes())
    with pytest.raises(ExportError, match="holds 15 rows instead of 12"):
        read_embeddings(folder)


@pytest.mark.parametrize("damage", ["cut", "noise", "overwritten"])
def test_a_damaged_part_is_named_and_mended_by_another_run(embedder: Embedder, folder: Path, damage: str) -> None:
    part = folder / "part-00001.parquet"
    whole = part.read_bytes()
    middle = len(whole) // 3
    part.write_bytes(
        {
            "cut": whole[:middle],
            "noise": b"no Parquet",
            "overwritten": whole[:4] + bytes(middle) + whole[4 + middle :],  # the footer is whole, pages are not
        }[damage]
    )
    for read in (read_embeddings, SearchIndex.open, lambda place: write_npy(read_summary(place))):
        with pytest.raises(ExportError, match=r"/part-00001\.parquet is damaged \(.+\); remove it and run"):
            read(folder)
    part.unlink()
    summary = export_embeddings(embedder, folder.parent / "drugs.smi", folder, rows_per_part=5, dtype="float32")
    assert (summary.parts, summary.reused_parts) == (3, 2)
    assert part.read_bytes() == whole
