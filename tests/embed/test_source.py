from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmsa_dist.config.load import load_config
from mmsa_dist.embed import Embedder
from mmsa_dist.embed.source import FileRows, ShardRows, Source, open_source
from tests.fixtures.embedders import DRUGS, random_embedder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder(batch_size=3)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "drugs.csv"
    lines = [f"{smiles},CCO,D{n},E{n}" for n, smiles in enumerate([*DRUGS[:4], "junk", *DRUGS[4:]])]
    path.write_text("\n".join(["smiles,product,name,code", *lines, ""]))
    return path


def test_what_a_path_names(embedder: Embedder, table: Path, tiny_shards: Path) -> None:
    assert isinstance(open_source(tiny_shards, embedder), ShardRows)
    assert isinstance(open_source(str(table), embedder), FileRows)
    assert isinstance(open_source([str(table), str(table)], embedder), FileRows)


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_batches_are_cut_at_the_same_rows_wherever_one_starts(
    embedder: Embedder, table: Path, tiny_shards: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is computed together sets the last bits, so a restart has to compute the same rows together."""
    infer, batches = Embedder._infer, []

    def watched(self: Embedder, block: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        batches.append(block["inchikey"].to_pylist())
        return infer(self, block)

    monkeypatch.setattr(Embedder, "_infer", watched)
    source: Source = open_source(table if kind == "file" else tiny_shards, embedder)
    whole = list(source.rows(0))
    all_batches = batches.copy()
    assert len(whole) == (12 if kind == "file" else source.total)
    for start in (1, 3, 4, 5, 7, 11, len(whole) - 1, len(whole)):
        batches.clear()
        found = list(source.rows(start))
        assert batches == all_batches[len(all_batches) - len(batches) :]
        assert [row for row, _ in found] == [row for row, _ in whole[start:]]
        for (_, vector), (_, expected) in zip(found, whole[start:], strict=True):
            np.testing.assert_array_equal(vector, expected)


def test_the_digest_is_that_of_what_is_read(embedder: Embedder, table: Path) -> None:
    options = load_config().prepare
    digest = FileRows([str(table)], embedder, options).digest
    assert FileRows([str(table)], embedder, options).digest == digest
    others = [
        FileRows([str(table)], embedder, dataclasses.replace(options, smiles_column="product")),
        FileRows([str(table)], embedder, dataclasses.replace(options, id_column="code")),
        FileRows([str(table), str(table)], embedder, options),
    ]
    table.write_text(table.read_text().replace("D3", "D9"))
    others.append(FileRows([str(table)], embedder, options))
    assert len({digest, *(other.digest for other in others)}) == 5


def test_columns_are_taken_by_name(embedder: Embedder, table: Path) -> None:
    options = dataclasses.replace(load_config().prepare, smiles_column="product", id_column="code")
    rows = [row for row, _ in open_source(table, embedder, options).rows(0)]
    assert {row.smiles for row in rows} == {"CCO"}
    assert [row.id for row in rows[:2]] == ["E0", "E1"]
