"""Approximate search: what it finds has exact distances, its probes are tuned, the size rule picks it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("faiss")
from mmsa_dist.structure import neighbours as module
from mmsa_dist.structure.nearest import nearest, squared_distances
from mmsa_dist.structure.neighbours import FlatCandidates, InvertedLists, NeighbourIndex, make_candidates

OPTIONS = {"recall_target": 0.95, "sample": 128, "k": 8}


def clustered(rows: int = 12_000, width: int = 16) -> torch.Tensor:
    """Fifty clusters, one row in four a copy of another, one in a hundred all zero."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(50, width, generator=generator)
    x = centres[torch.arange(rows) % 50] + 0.3 * torch.randn(rows, width, generator=generator)
    x[::4] = x[1::4]
    x[::100] = 0
    return x.half()


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return clustered()


@pytest.mark.parametrize("compressed", [False, True], ids=["ivf", "ivfpq"])
def test_it_reaches_its_target_at_exact_distances(rows, compressed):
    lists = InvertedLists(rows, compressed=compressed, **OPTIONS)
    found = nearest(lists, rows[:200], rows, 9)
    truth = nearest(FlatCandidates(rows), rows[:200], rows, 9)
    assert float((found.distance_Gk <= truth.distance_Gk[:, -1:]).double().mean()) >= 0.9
    assert torch.equal(squared_distances(rows[:200], rows, found.row_Gk), found.distance_Gk)
    steps = found.distance_Gk.diff(dim=1)
    assert (steps >= 0).all()
    assert (found.row_Gk.diff(dim=1)[steps == 0] > 0).all(), "equal distances go by row"
    assert all(len(row.unique()) == 9 for row in found.row_Gk)
    assert 1 <= lists.probes <= lists.lists // 4


def test_the_same_rows_give_the_same_lists(rows):
    a, b = (InvertedLists(rows, compressed=False, **OPTIONS) for _ in range(2))
    assert a.probes == b.probes
    assert torch.equal(nearest(a, rows[:50], rows, 9).row_Gk, nearest(b, rows[:50], rows, 9).row_Gk)


def test_a_higher_target_is_met_by_more_probes(rows):
    low, high = (InvertedLists(rows, compressed=False, **OPTIONS | {"recall_target": t}) for t in (0.1, 0.999))
    assert low.probes == 1
    assert high.probes > 1


@pytest.mark.parametrize("k", [1, 2, 8])
def test_the_query_itself_does_not_count_as_found(k):
    scattered = torch.randn(12_000, 16, generator=torch.Generator().manual_seed(0)).half()
    index = NeighbourIndex((torch.arange(12_000), scattered), kind="ivf", recall_target=0.8, recall_sample=256, k=k)
    assert index.candidates.probes < index.candidates.lists // 4, "the target can be reached"
    assert index.recall(256, k) >= 0.8


def test_fewer_rows_in_the_lists_than_asked_for_are_missing_not_wrong(rows):
    lists = InvertedLists(rows, compressed=False, **OPTIONS | {"recall_target": 0.01})
    found = nearest(lists, rows[:4], rows, 3000)
    assert (found.row_Gk[:, -1] == -1).all()
    assert found.distance_Gk[:, -1].isinf().all()
    assert (found.row_Gk[:, 0] >= 0).all()


def test_a_query_that_is_not_finite_finds_nothing(rows):
    query = rows[:3].clone()
    query[1, 2] = torch.nan
    found = nearest(InvertedLists(rows, compressed=False, **OPTIONS), query, rows, 2)
    assert (found.row_Gk >= 0).all(dim=1).tolist() == [True, False, True]
    assert (found.row_Gk[1] == -1).all()


def test_auto_goes_by_rows_and_then_by_memory(rows, monkeypatch):
    assert isinstance(make_candidates(rows, "auto", **OPTIONS), FlatCandidates)
    assert isinstance(make_candidates(rows[:100], "ivf", **OPTIONS), FlatCandidates), "too few to train lists"
    monkeypatch.setattr(module, "FLAT_ROWS", len(rows) - 1)
    assert make_candidates(rows, "auto", **OPTIONS).per_neighbour == 1
    monkeypatch.setattr(module, "IVF_BYTES", rows.numel() * 4 - 1)
    lists = make_candidates(rows, "auto", **OPTIONS)
    assert isinstance(lists, InvertedLists)
    assert lists.per_neighbour > 1


def test_the_index_over_lists_names_no_molecule_its_own_neighbour(rows):
    index = NeighbourIndex((3 * torch.arange(len(rows)), rows), kind="ivf", recall_target=0.95, k=8)
    assert not index.exhaustive
    assert 0.9 <= index.recall(128, 8) <= 1
    asked = torch.arange(0, 400)
    ids, _ = index.search(rows[asked], 3 * asked, 8)
    assert not (ids == 3 * asked[:, None]).any()


def test_the_lists_and_the_order_of_queries_are_our_own_and_change_nothing(rows):
    lists = InvertedLists(rows, compressed=False, **OPTIONS)
    query = rows[:500].float() - lists.centre_C
    distance, row = lists(query, 9)
    expected, _ = lists._index.search(query.numpy(), 9)
    torch.testing.assert_close(distance, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    of_these = squared_distances(rows[:500], rows, row).float()  # rows that are copies may come in another order
    torch.testing.assert_close(distance, of_these, rtol=1e-4, atol=1e-4)
