"""Nearest rows: exact, ties by row, the same bits whatever is searched beside them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsa_dist.structure import nearest as module
from mmsa_dist.structure.nearest import ProductCandidates, moments, nearest, spread_of, squared_distances

pytest.importorskip("faiss")
from mmsa_dist.structure.neighbours import FlatCandidates

SEARCHES = [ProductCandidates, partial(ProductCandidates, resident=False), FlatCandidates]


def exhaustive(query_GC: Tensor, rows_FC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All pairs by the definition in float64, sorted by (distance, row)."""
    distance = (query_GC.double()[:, None] - rows_FC.double()).square().sum(2)
    order = [sorted(range(len(rows_FC)), key=lambda j, d=d: (float(d[j]), j))[:k] for d in distance]
    row = torch.tensor(order).view(len(query_GC), -1)
    return distance.gather(1, row), row


@pytest.mark.parametrize("search", SEARCHES)
@settings(deadline=None)
@given(data=st.data())
def test_equals_an_exhaustive_search_with_many_ties(search, data):
    # Few small integers in few dimensions: most distances occur many times.
    rows, queries, width = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3)))
    value = st.integers(-2, 2)
    x = torch.tensor(data.draw(st.lists(value, min_size=rows * width, max_size=rows * width))).view(rows, width)
    q = torch.tensor(data.draw(st.lists(value, min_size=queries * width, max_size=queries * width)))
    x, q, k = x.half(), q.view(queries, width).half(), data.draw(st.integers(1, 8))
    found = nearest(search(x), q, x, k)
    distance, row = exhaustive(q, x, k)
    taken = min(k, rows)
    assert torch.equal(found.row_Gk[:, :taken], row)
    assert torch.equal(found.distance_Gk[:, :taken], distance)
    assert (found.row_Gk[:, taken:] == -1).all()
    assert found.distance_Gk[:, taken:].isinf().all()
    assert found.uncertain == 0


@pytest.mark.parametrize("search", SEARCHES)
def test_tight_clusters_far_from_the_origin(search):
    """float32's |q|² + |x|² − 2<q, x> cannot order these rows; the result is exact all the same."""
    generator = torch.Generator().manual_seed(0)
    clusters = 100 + 100 * torch.randn(4, 64, generator=generator)
    x = (clusters.repeat_interleave(50, 0) + 0.2 * torch.randn(200, 64, generator=generator)).half()
    distance, row = exhaustive(x, x, 8)
    naive = x.float().square().sum(1) - 2 * x.float() @ x.float().T
    assert not torch.equal(naive.topk(8, largest=False).indices, row)
    found = nearest(search(x), x, x, 8)
    assert torch.equal(found.row_Gk, row)
    torch.testing.assert_close(found.distance_Gk, distance, rtol=1e-6, atol=0)


def test_faiss_and_torch_give_the_same_bits():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3000, 96, generator=generator).tanh().half()
    one, *others = (nearest(search(x), x[:50], x, 16) for search in SEARCHES)
    for other in others:
        assert torch.equal(other.row_Gk, one.row_Gk)
        assert torch.equal(other.distance_Gk, one.distance_Gk)


@pytest.mark.parametrize("resident", [True, False])
def test_rows_are_searched_part_by_part(resident, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_PRODUCT", 7)
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(4)).half()
    found = nearest(ProductCandidates(x, resident=resident), x, x, 3)
    assert torch.equal(found.row_Gk, exhaustive(x, x, 3)[1])


def test_the_distance_of_a_pair_does_not_depend_on_what_is_computed_beside_it():
    generator = torch.Generator().manual_seed(2)
    for width in (1, 7, 64, 512, 1000):
        x = torch.randn(300, width, generator=generator).half()
        row = torch.randint(0, 300, (40, 33), generator=generator)
        together = squared_distances(x[:40], x, row)
        for i, j in ((0, 0), (13, 7), (39, 32)):
            assert squared_distances(x[i : i + 1], x, row[i : i + 1, j : j + 1])[0, 0] == together[i, j]


@pytest.mark.parametrize("search", SEARCHES)
def test_rows_that_are_all_the_same_go_by_number(search):
    x = torch.zeros(500, 8).half()
    found = nearest(search(x), x[:3], x, 4)
    assert found.row_Gk.tolist() == [[0, 1, 2, 3]] * 3
    assert found.uncertain == 0


@pytest.mark.parametrize("search", SEARCHES)
def test_more_equal_rows_than_may_be_compared_are_counted(search, monkeypatch):
    monkeypatch.setattr(module, "MAX_CANDIDATES", 32)
    x = torch.zeros(500, 8).half()
    found = nearest(search(x), x[:3], x, 4)
    assert found.uncertain == 3
    assert (found.distance_Gk == 0).all()


@pytest.mark.parametrize("search", SEARCHES)
def test_a_query_that_is_not_finite_finds_nothing(search):
    x = torch.randn(20, 4).half()
    query = x[:3].clone()
    query[1, 2] = torch.nan
    found = nearest(search(x), query, x, 2)
    assert (found.row_Gk[1] == -1).all()
    assert torch.equal(found.row_Gk[[0, 2], 0], torch.tensor([0, 2]))


@pytest.mark.parametrize("search", SEARCHES)
def test_nothing_to_search(search):
    x = torch.empty(0, 4).half()
    found = nearest(search(x), torch.randn(2, 4).half(), x, 3)
    assert (found.row_Gk == -1).all()


def test_rows_past_one_product_are_searched(monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_PRODUCT", 7)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(3)).half()
    assert torch.equal(nearest(ProductCandidates(x), x, x, 5).row_Gk, exhaustive(x, x, 5)[1])


def test_a_lower_precision_of_products_changes_nothing():
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(4)).half()
    expected = nearest(ProductCandidates(x), x, x, 5)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nearest(ProductCandidates(x), x, x, 5)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found.row_Gk, expected.row_Gk)


@pytest.mark.parametrize("rows", [2, 3, 40])
def test_spread_is_the_mean_squared_distance_of_two_different_rows(rows):
    rows_FC = (3 * torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows)) + 2).half()
    pairs = torch.pdist(rows_FC.double()).square()
    torch.testing.assert_close(spread_of(moments(rows_FC)), pairs.mean())
    torch.testing.assert_close(moments(rows_FC[:1]) + moments(rows_FC[1:]), moments(rows_FC))


def test_spread_of_few_rows_is_zero():
    assert [float(spread_of(moments(torch.ones(rows, 3).half()))) for rows in (0, 1, 2)] == [0, 0, 0]
