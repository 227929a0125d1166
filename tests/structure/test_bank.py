"""The bank in one process; several ranks are in tests/distributed/test_neighbours.py."""

from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.structure.bank import EmbeddingBank, reshard


def filled_bank(num_molecules: int = 7, rank: int = 0, world: int = 1) -> EmbeddingBank:
    """Row of molecule i holds i, written at step i; molecule 3 was never written. No communication."""
    bank = EmbeddingBank(num_molecules, 2, rank, world)
    for local, molecule in enumerate(range(rank, num_molecules, world)):
        if molecule != 3:
            bank.rows_LC[local], bank.step_L[local] = molecule, molecule
    return bank


def test_rows_are_written_once_and_fetched_in_any_order():
    bank = EmbeddingBank(5, 2, 0, 1)
    bank.write(torch.tensor([4, 0]), torch.tensor([[4.0, 4.5], [0.0, 0.5]]), step=3)
    assert bank.fetch(torch.tensor([0, 4, 0])).tolist() == [[0.0, 0.5], [4.0, 4.5], [0.0, 0.5]]
    assert bank.step_L.tolist() == [3, -1, -1, -1, 3]


def test_a_row_never_written_is_nan():
    assert EmbeddingBank(2, 2, 0, 1).fetch(torch.tensor([1])).isnan().all()


def test_last_of_a_repeated_molecule_wins_and_minus_one_is_ignored():
    bank = EmbeddingBank(3, 1, 0, 1)
    bank.write(torch.tensor([1, -1, 1, 2, 1]), torch.tensor([[1.0], [9.0], [2.0], [5.0], [3.0]]), step=0)
    assert bank.fetch(torch.tensor([1, 2])).tolist() == [[3.0], [5.0]]
    assert bank.step_L.tolist() == [-1, 0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 70000.0], ids=["nan", "inf", "past float16"])
def test_rows_that_are_not_finite_in_float16_are_refused_and_counted(bad):
    bank = EmbeddingBank(3, 2, 0, 1)
    bank.write(torch.tensor([0, 1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), step=0)
    bank.write(torch.tensor([0, 1, -1]), torch.tensor([[bad, 0.0], [5.0, 6.0], [bad, bad]]), step=1)
    assert bank.fetch(torch.tensor([0, 1])).tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert bank.meters(1)["bank/refused"] == 1


def test_a_bank_holds_no_gradient():
    bank = EmbeddingBank(2, 2, 0, 1)
    bank.write(torch.tensor([0]), torch.ones(1, 2, requires_grad=True), step=0)
    assert not bank.fetch(torch.tensor([0])).requires_grad


def test_meters():
    meters = filled_bank().meters(10)
    assert meters["bank/filled"] == pytest.approx(6 / 7)
    assert meters["bank/age_mean"] == pytest.approx(10 - (0 + 1 + 2 + 4 + 5 + 6) / 6)
    assert meters["bank/age_max"] == 10
    empty = EmbeddingBank(4, 2, 0, 1).meters(10)
    assert empty["bank/filled"] == 0
    assert math.isnan(empty["bank/age_mean"])
    assert math.isnan(empty["bank/age_max"])


@pytest.mark.parametrize("index", [7, -2])
def test_molecules_outside_the_manifest_are_named(index):
    with pytest.raises(ValueError, match=f"got values from .*{index}.* must come from the same manifest"):
        filled_bank().write(torch.tensor([index, 0]), torch.zeros(2, 2), step=0)


def test_a_wrong_width_is_named():
    with pytest.raises(ValueError, match=r"u_BC: got shape \(1, 3\), expected \(1, 2\)"):
        filled_bank().write(torch.tensor([0]), torch.zeros(1, 3), step=0)


@pytest.mark.parametrize(("old", "new"), [(1, 1), (1, 3), (3, 1), (2, 4), (4, 2), (9, 2), (2, 9)])
def test_reshard_to_any_number_of_ranks(old, new):
    states = [filled_bank(rank=rank, world=old).state_dict() for rank in reversed(range(old))]
    for rank in range(new):
        bank, expected = EmbeddingBank(7, 2, rank, new), filled_bank(rank=rank, world=new)
        bank.load_state_dict(reshard(iter(states), rank, new))
        torch.testing.assert_close(bank.rows_LC, expected.rows_LC, equal_nan=True, rtol=0, atol=0)
        assert torch.equal(bank.step_L, expected.step_L)


def test_reshard_names_missing_and_foreign_shards():
    states = [filled_bank(rank=rank, world=3).state_dict() for rank in range(3)]
    with pytest.raises(ValueError, match=r"got ranks \[0, 2\], expected all of 0\.\.2"):
        reshard([states[0], states[2]], 0, 1)
    with pytest.raises(ValueError, match="rank 1 of 3"):
        reshard([states[1], states[1], states[0]], 0, 1)
    with pytest.raises(ValueError, match="rank 0 of 1 with 8 molecules"):
        reshard([states[0], filled_bank(8).state_dict()], 0, 1)


def test_loading_the_shard_of_another_rank_says_what_to_do():
    state = filled_bank(rank=1, world=2).state_dict()
    with pytest.raises(ValueError, match=r"got rank 1 of 2 .*, expected rank 0 of 1 .*reshard"):
        filled_bank().load_state_dict(state)
