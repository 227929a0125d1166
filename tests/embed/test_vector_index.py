"""The index over many vectors: what it finds, that it is kept, and that it never answers for others."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

faiss = pytest.importorskip("faiss", reason="search needs faiss-cpu, of the extras train and report")

from mmsa_dist.embed import vector_index as module  # noqa: E402
from mmsa_dist.embed.vector_index import VectorIndex  # noqa: E402


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    monkeypatch.setattr(module, "EXACT_ROWS", 1000)


@pytest.fixture(scope="module")
def unit():
    random = np.random.default_rng(0)
    centres = random.standard_normal((40, 32))
    vectors = centres[random.integers(0, 40, 6000)] + 0.8 * random.standard_normal((6000, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def share_found(index: VectorIndex, unit: np.ndarray) -> float:
    queries = unit[5::61]
    truth = np.argsort(-queries @ unit.T, axis=1)[:, :10]
    found = index.search(queries, 10)[1]
    return float(np.mean([len(np.intersect1d(*rows)) / 10 for rows in zip(found, truth, strict=True)]))


def test_few_vectors_are_searched_exactly_and_nothing_is_kept(unit, tmp_path):
    index = VectorIndex.kept(tmp_path, unit[:1000], "few")
    assert index.about is None
    assert share_found(index, unit[:1000]) == 1
    assert list(tmp_path.iterdir()) == []


def test_many_are_found_by_lists_that_are_kept(unit, tmp_path):
    built = VectorIndex.kept(tmp_path, unit, "many")
    assert built.about is not None
    assert (built.about.vectors, built.about.lists) == (6000, 77)
    assert built.about.recall_at_10 >= module.RECALL
    assert share_found(built, unit) > 0.95
    before = (tmp_path / "_index.faiss").stat().st_mtime_ns
    read = VectorIndex.kept(tmp_path, unit, "many")
    assert read.about == built.about
    for ours, theirs in zip(read.search(unit[:50], 7), built.search(unit[:50], 7), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "_index.faiss").stat().st_mtime_ns == before


def test_products_are_those_of_the_vectors(unit, tmp_path):
    products, rows = VectorIndex.kept(tmp_path, unit, "many").search(unit[:20], 3)
    np.testing.assert_allclose(products, np.einsum("qd,qkd->qk", unit[:20], unit[rows]), atol=2e-3)
    assert (rows[:, 0] == np.arange(20)).all()


def test_an_index_of_other_vectors_is_built_anew(unit, tmp_path):
    VectorIndex.kept(tmp_path, unit, "first")
    other = VectorIndex.kept(tmp_path, unit[::-1].copy(), "second")
    assert (other.search(unit[:20], 1)[1][:, 0] == 5999 - np.arange(20)).all()
    assert json.loads((tmp_path / "_index.json").read_text())["of"] == "second"
    (tmp_path / "_index.json").write_text("{}")
    again = VectorIndex.kept(tmp_path, unit, "second")
    assert (again.search(unit[:20], 1)[1][:, 0] == np.arange(20)).all()


def test_vectors_that_float16_cannot_tell_apart_are_searched_exactly(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    vectors = 1 + 5e-3 * random.standard_normal((3000, 32))  # most of which float32 does tell apart
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    (tmp_path / "_index.faiss").write_bytes(b"of other vectors")
    index = VectorIndex.kept(tmp_path, unit, "collapsed")
    assert index.about is None
    exact = VectorIndex.exact(unit).search(unit[:50], 10)[1]
    np.testing.assert_array_equal(index.search(unit[:50], 10)[1], exact)
    assert [path.name for path in tmp_path.iterdir()] == ["_index.json"], "that there is no use in trying again"
    monkeypatch.setattr(module, "_build", None)
    again = VectorIndex.kept(tmp_path, unit, "collapsed")
    np.testing.assert_array_equal(again.search(unit[:50], 10)[1], exact)


@pytest.mark.parametrize("copies", [3, 40])
def test_repeated_vectors_are_no_reason_to_search_exactly(unit, tmp_path, copies, monkeypatch):
    """Of the copies of a neighbour no one is nearer than another, and which of them is found is left to chance."""
    monkeypatch.setattr(module, "_ROWS_PER_ADD", 700)
    repeated = np.repeat(unit[: 6000 // copies], copies, axis=0)[np.random.default_rng(0).permutation(6000)]
    index = VectorIndex.kept(tmp_path, repeated, "repeated")
    assert index.about is not None
    assert index.about.recall_at_10 >= module.RECALL
    queries = repeated[5::61]
    products = index.search(queries, 10)[0]
    np.testing.assert_allclose(products[:, : min(copies, 10)], 1, atol=1e-3)
    tenth = np.sort(queries @ repeated.T, axis=1)[:, -10:-9]
    assert (products >= tenth - 1e-3).mean() > 0.95


@pytest.mark.parametrize("k", [100, 3000])
def test_more_than_the_10_nearest_are_all_found(unit, tmp_path, k):
    index = VectorIndex.kept(tmp_path, unit, "many")
    assert index.about is not None
    assert index.about.probes < index.about.lists / 2
    queries = unit[5::611]
    exact = -np.sort(-queries @ unit.T, axis=1)[:, :k]
    products, rows = index.search(queries, k)
    assert rows.min() >= 0
    assert all(len(set(of_query)) == k for of_query in rows)
    np.testing.assert_allclose(np.sort(np.einsum("qd,qkd->qk", queries, unit[rows]))[:, ::-1], exact, atol=1e-3)
    assert (np.diff(products) <= 0).all()


def test_as_many_are_found_as_asked_for_though_their_list_holds_fewer(tmp_path):
    """Five vectors that lie apart from 2,000 others have a list of their own."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((2000, 32)) + 9 * np.eye(32)[random.integers(0, 31, 2000)]
    vectors[::400] = 9 * np.eye(32)[31] + 0.1 * random.standard_normal((5, 32))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = VectorIndex.kept(tmp_path, unit, "apart")
    assert index.about is not None
    index.about = replace(index.about, probes=1)
    rows = index.search(unit[[0, 1]], 11)[1]
    assert sorted(rows[0, :5]) == [0, 400, 800, 1200, 1600]
    assert rows.min() >= 0


def test_a_folder_that_cannot_be_written_to_does_not_hinder(unit, tmp_path):
    index = VectorIndex.kept(tmp_path / "nowhere", unit, "many")
    assert share_found(index, unit) > 0.95
