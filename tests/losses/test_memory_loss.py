"""The alignment loss in one process; over ranks in tests/distributed/test_neighbours.py."""

from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.losses.memory import memory_loss

EVERYONE = torch.ones(4, dtype=torch.bool)


def test_is_squared_error_plus_info_nce():
    g, readout = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    squared = (2**2 + 0 + 1 + 4**2) / 4
    # Cosines over the temperature: [[2, 2], [0, 0]] from g to the read-outs, its transpose back; a row's own entry is
    # on the diagonal.
    there = math.log(2) + math.log(2)
    back = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))
    assert float(memory_loss(g, readout, 0.5, EVERYONE[:2])) == pytest.approx(squared + (there + back) / 2 / 2)


def test_the_trivial_solution_is_not_a_minimum():
    zero, apart = torch.zeros(4, 4), torch.eye(4)
    assert memory_loss(apart, apart, 0.1, EVERYONE) < 0.01 < memory_loss(zero, zero, 0.1, EVERYONE)


def test_molecules_without_an_embedding_do_not_count():
    generator = torch.Generator().manual_seed(0)
    g, readout = torch.randn(2, 4, 3, generator=generator)
    present = torch.tensor([True, False, True, False])
    expected = memory_loss(g[present], readout[present], 0.5, EVERYONE[:2])
    torch.testing.assert_close(memory_loss(g, readout, 0.5, present), expected)
    assert memory_loss(g, readout, 0.5, ~EVERYONE) == 0
