"""The index over many vectors: what it finds, that it is kept, and that it never answers for others."""

from __future__ import annotations

import json

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
    assert built.about.recall >= module.RECALL
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


def test_vectors_that_float16_cannot_tell_apart_are_searched_exactly(tmp_path):
    random = np.random.default_rng(0)
    vectors = 1 + 1e-5 * random.standard_normal((3000, 32))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = VectorIndex.kept(tmp_path, unit, "collapsed")
    assert index.about is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_does_not_hinder(unit, tmp_path):
    index = VectorIndex.kept(tmp_path / "nowhere", unit, "many")
    assert share_found(index, unit) > 0.95
