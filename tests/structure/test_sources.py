"""Where neighbours come from, in one process."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("faiss")
from mmsa_dist.structure.global_neighbours import GlobalNeighbours, reshard
from mmsa_dist.structure.neighbours import FlatCandidates, NeighbourIndex
from mmsa_dist.structure.sources import BatchNeighbours, NoNeighbours, TableNeighbours
from tests.fixtures.structure import structure


def line(*positions: float) -> torch.Tensor:
    """Embeddings on a line, so that neighbours can be seen."""
    return torch.tensor(positions)[:, None]


def warm_source(k: int = 2) -> GlobalNeighbours:
    """Molecules 0..5 at 0, 1, 2, 3, 4, 5; molecule 6 was never seen."""
    source = GlobalNeighbours(7, 1, structure(k=k, refresh_every=10, recall_sample=8))
    source.observe(torch.arange(6), line(0, 1, 2, 3, 4, 5), step=1)
    assert source.refresh(10)
    return source


def test_none():
    found = NoNeighbours().find(line(1, 2), torch.tensor([5, -1]))
    assert found.ids_BK.shape == found.vertices_BK.shape == (2, 0)
    assert found.stale_VC.shape == (0, 1)


def test_batch():
    found = BatchNeighbours(2).find(line(0, 1, 3, 3), torch.tensor([9, 8, -1, 7]))
    assert found.vertices_BK.tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]
    assert found.ids_BK.tolist() == [[8, -1], [9, -1], [7, 8], [-1, 8]]
    assert found.distances_BK.tolist() == [[1, 9], [1, 4], [0, 4], [0, 4]]
    assert found.spread == pytest.approx((1 + 9 + 9 + 4 + 4 + 0) / 6)
    assert found.stale_VC.shape == (0, 1)


def test_batch_with_fewer_molecules_than_neighbours_and_broken_rows():
    found = BatchNeighbours(3).find(line(0, math.nan, 2), torch.tensor([4, 5, 6]))
    assert found.vertices_BK.tolist() == [[2, -1, -1], [-1, -1, -1], [0, -1, -1]]
    assert found.ids_BK.tolist() == [[6, -1, -1], [-1, -1, -1], [4, -1, -1]]
    alone = BatchNeighbours(1).find(line(0), torch.tensor([4]))
    assert alone.vertices_BK.tolist() == [[-1]]


def test_many_equal_rows_in_the_batch_never_name_the_molecule_itself():
    found = BatchNeighbours(2).find(torch.ones(6, 1), torch.arange(6))
    assert found.vertices_BK.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]


def test_table():
    table = TableNeighbours(line(0, 10, 20, 30), 2)
    found = table.find(line(9, 31, 1), torch.tensor([-1, -1, -1]))
    assert found.ids_BK.tolist() == [[1, 0], [3, 2], [0, 1]]
    assert (found.vertices_BK >= 3).all()
    assert found.stale_VC[found.vertices_BK - 3][..., 0].tolist() == [[10, 0], [30, 20], [0, 10]]
    with pytest.raises(ValueError, match="1 reference rows are not finite"):
        TableNeighbours(line(0, math.nan), 2)


def test_global_names_stale_rows_once_and_fresh_rows_by_position():
    source = warm_source()
    # Molecule 2 has moved from 2 to 2.25 since; 6 is new; the last is no training molecule.
    u, index = line(2.25, 6, 0.5), torch.tensor([2, 6, -1])
    found = source.find(u, index)
    assert found.ids_BK.tolist() == [[3, 1], [5, 4], [0, 1]]
    assert found.distances_BK.tolist() == [[0.5625, 1.5625], [1, 4], [0.25, 0.25]]
    assert found.stale_VC[:, 0].tolist() == [0, 1, 3, 4, 5]
    assert found.stale_VC[found.vertices_BK - 3][..., 0].tolist() == [[3, 1], [5, 4], [0, 1]]

    # Now two neighbours are in the same batch: their fresh rows are meant, not the bank's.
    found = source.find(line(1.5, 0.25), torch.tensor([1, 0]))
    assert found.ids_BK.tolist() == [[2, 0], [1, 2]]
    assert found.vertices_BK.tolist() == [[2, 1], [0, 2]]
    assert found.stale_VC.tolist() == [[2.0]]


def test_global_falls_back_to_the_batch_until_there_is_an_index():
    source = GlobalNeighbours(7, 1, structure(k=2, refresh_every=10, recall_sample=8))
    assert source.find(line(0, 1, 3), torch.tensor([0, 1, 2])).vertices_BK.tolist() == [[1, 2], [0, 2], [1, 0]]
    assert not source.refresh(10), "nothing is in the bank"
    source.observe(torch.arange(3), line(0, 1, 3), step=1)
    assert not source.refresh(0)
    assert not source.refresh(9)
    assert source.refresh(9, now=True)
    assert source.find(line(0.0), torch.tensor([0])).ids_BK.tolist() == [[1, 2]]


def test_the_index_is_a_snapshot_but_rows_are_those_of_now():
    source = warm_source()
    source.observe(torch.tensor([1]), line(100), step=11)
    found = source.find(line(0.0), torch.tensor([0]))
    assert found.ids_BK.tolist() == [[1, 2]]
    assert found.stale_VC.tolist() == [[100.0], [2.0]]
    source.refresh(20)
    assert source.find(line(0.0), torch.tensor([0])).ids_BK.tolist() == [[2, 3]]


def test_missing_neighbours_are_minus_one():
    found = warm_source(k=9).find(line(0.0), torch.tensor([0]))
    assert found.ids_BK.tolist() == [[1, 2, 3, 4, 5, -1, -1, -1, -1]]
    assert found.vertices_BK.tolist() == [[1, 2, 3, 4, 5, -1, -1, -1, -1]]
    assert found.distances_BK[0, 5:].isinf().all()


def test_broken_rows_are_never_indexed_and_find_nothing():
    source = warm_source()
    source.observe(torch.tensor([6]), line(math.nan), step=11)
    source.refresh(20)
    found = source.find(line(5.0, math.nan), torch.tensor([5, 6]))
    assert found.ids_BK.tolist() == [[4, 3], [-1, -1]]
    assert source.meters()["bank/refused"] == 1


def test_a_neighbour_that_is_broken_in_this_batch_keeps_its_row_of_the_bank():
    found = warm_source().find(line(1.5, math.nan), torch.tensor([1, 2]))
    assert found.ids_BK.tolist() == [[2, 0], [-1, -1]]
    assert found.vertices_BK.tolist() == [[3, 2], [-1, -1]]
    assert found.stale_VC.tolist() == [[0.0], [2.0]]


def test_meters_name_recall_and_age():
    source = GlobalNeighbours(7, 1, structure(k=2, refresh_every=10, recall_sample=8))
    assert math.isnan(source.meters()["bank/recall"])
    source = warm_source()
    source.observe(torch.tensor([0]), line(0), step=3)
    assert source.meters() == {
        "bank/filled": pytest.approx(6 / 7),
        "bank/age_mean": pytest.approx(10 / 6),
        "bank/age_max": 2.0,
        "bank/refused": 0.0,
        "bank/recall": 1.0,
        "bank/uncertain": 0.0,
    }


@pytest.mark.parametrize("rows", [torch.zeros(40, 8), torch.ones(40, 8).cumsum(0) // 7], ids=["zero", "repeated"])
def test_recall_is_one_among_equal_rows(rows):
    source = GlobalNeighbours(40, 8, structure(k=4, refresh_every=1, recall_sample=16))
    source.observe(torch.arange(40), rows, step=1)
    source.refresh(1)
    assert source.meters()["bank/recall"] == 1.0


def test_measuring_recall_counts_no_search():
    equal = NeighbourIndex((torch.arange(6000), torch.zeros(6000, 2).half()))
    assert equal.recall(32, 16) == 1
    assert equal.uncertain == 0
    equal.search(torch.zeros(5, 2), torch.full((5,), -1), 16)
    assert equal.uncertain == 5


def test_recall_notices_an_index_that_misses(monkeypatch):
    source = GlobalNeighbours(40, 2, structure(k=4, refresh_every=1, recall_sample=16))
    source.observe(torch.arange(40), torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), step=1)
    source.refresh(1)

    def first_rows(_, query, k):
        return torch.zeros(len(query), k), torch.arange(k).repeat(len(query), 1)

    monkeypatch.setattr(FlatCandidates, "__call__", first_rows)
    monkeypatch.setattr("mmsa_dist.structure.nearest.MAX_CANDIDATES", 6)
    assert source._index.recall(16, 4) < 0.6


def test_state_survives_and_the_snapshot_with_it():
    source = warm_source()
    source.observe(torch.tensor([1]), line(100), step=11)
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    loaded = GlobalNeighbours(7, 1, structure(k=2, refresh_every=10, recall_sample=8))
    loaded.load_state_dict(state)
    found, again = (vars(s.find(line(0.0), torch.tensor([0]))) for s in (source, loaded))
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert loaded.meters() == source.meters()


def test_state_of_a_cold_source_and_resharding_to_the_same():
    cold = GlobalNeighbours(7, 1, structure(k=2, refresh_every=10, recall_sample=8))
    again = GlobalNeighbours(7, 1, structure(k=2, refresh_every=10, recall_sample=8))
    again.load_state_dict(reshard([cold.state_dict()], 0, 1))
    assert again.find(line(0, 1), torch.tensor([0, 1])).vertices_BK.tolist() == [[1, -1], [0, -1]]


def test_the_state_of_another_source_is_refused():
    with pytest.raises(ValueError, match=r"BatchNeighbours stores nothing.*model.structure.neighbours"):
        BatchNeighbours(2).load_state_dict(warm_source().state_dict())
    with pytest.raises(ValueError, match=r"expected a bank.*model.structure.neighbours"):
        warm_source().load_state_dict(NoNeighbours().state_dict())
    BatchNeighbours(2).load_state_dict(NoNeighbours().state_dict())
