"""The index is renewed beside training: it takes effect at a fixed step, survives a save, and fails aloud."""

from __future__ import annotations

import threading

import pytest
import torch

pytest.importorskip("faiss")
from mmsa_dist.structure import global_neighbours as module
from mmsa_dist.structure.global_neighbours import GlobalNeighbours, reshard
from tests.fixtures.structure import structure


def source(lag: int = 3) -> GlobalNeighbours:
    return GlobalNeighbours(4, 1, structure(k=1, refresh_every=10, refresh_lag=lag, recall_sample=4))


def line(*positions: float) -> torch.Tensor:
    return torch.tensor(positions)[:, None]


def started() -> GlobalNeighbours:
    """Molecules 0..2 at 0, 1, 3; at step 20, while an index of that is in use, molecule 1 has gone to 9."""
    one = source()
    one.observe(torch.arange(3), line(0, 1, 3), step=1)
    assert not one.refresh(10)
    assert one.refresh(13)
    one.observe(torch.tensor([1]), line(9), step=19)
    assert not one.refresh(20)
    return one


def nearest_to_0(one: GlobalNeighbours) -> list[list[int]]:
    return one.find(line(0.0), torch.tensor([0])).ids_BK.tolist()


def test_the_new_index_takes_effect_at_a_fixed_step():
    one = started()
    one._pending.index.result()  # even where it is ready before
    for step in (21, 22):
        assert not one.refresh(step)
        assert nearest_to_0(one) == [[1]]
    one.observe(torch.tensor([2]), line(0.5), step=23)  # after the snapshot: not seen
    assert one.refresh(23)
    assert nearest_to_0(one) == [[2]]
    assert one.find(line(8.0), torch.tensor([3])).ids_BK.tolist() == [[1]]


def test_training_goes_on_while_it_is_built_and_waits_at_the_step(monkeypatch):
    gate, real = threading.Event(), module.NeighbourIndex
    one = source()
    one._build = lambda snapshot: gate.wait(30) and real(snapshot)
    one.observe(torch.arange(3), line(0, 1, 3), step=1)
    assert not one.refresh(10)
    assert not one.refresh(11), "does not wait"
    assert one.find(line(0, 5), torch.tensor([0, 2])).vertices_BK.tolist() == [[1], [0]], "the batch until then"
    threading.Timer(0.05, gate.set).start()
    assert one.refresh(13)
    assert nearest_to_0(one) == [[1]]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_save_between_snapshot_and_change_over_holds_both(ranks):
    one = started()
    state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    if ranks == 2:  # there and back
        halves = [reshard([state], rank, 2) for rank in range(2)]
        assert [half["pending.ids"].tolist() for half in halves] == [[0, 2], [1]]
        state = reshard(halves, 0, 1)
    again = source()
    again.load_state_dict(state)
    for step in range(21, 35):
        both = [s.refresh(step) for s in (one, again)]
        assert both == [step in (23, 33)] * 2
        assert nearest_to_0(one) == nearest_to_0(again)
        assert one.meters() == again.meters()
        assert one.state_dict().keys() == again.state_dict().keys()
        for s in (one, again):
            s.observe(torch.tensor([2]), line(3.0 + step % 5), step)


def test_an_error_of_the_builder_is_raised_where_training_waits():
    one = source()

    def broken(snapshot):
        raise MemoryError("no room for the index")

    one._build = broken
    one.observe(torch.arange(3), line(0, 1, 3), step=1)
    one.refresh(10)
    with pytest.raises(MemoryError, match="no room"):
        one.refresh(13)


def test_now_replaces_what_is_being_built():
    one = started()
    one.observe(torch.tensor([2]), line(0.5), step=21)
    assert one.refresh(21, now=True)
    assert nearest_to_0(one) == [[2]]
    assert not one.refresh(23)


def test_low_recall_is_said_in_words():
    one = source(lag=0)
    assert one.warnings() == []
    one.observe(torch.arange(3), line(0, 1, 3), step=1)
    one.refresh(10)
    assert one.warnings() == []
    one._recall = 0.5
    assert "neighbour recall is 0.500, below 0.95" in one.warnings()[0]
    assert "model.structure.index" in one.warnings()[0]
