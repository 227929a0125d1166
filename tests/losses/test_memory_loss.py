"""The alignment loss in one process; over ranks in tests/distributed/test_neighbours.py."""

from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.losses.memory import memory_loss


def test_is_squared_error_plus_info_nce():
    g, readout = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    squared = (2**2 + 0 + 1 + 4**2) / 4
    # Cosines over the temperature: [[2, 2], [0, 0]] from g to the read-outs, its transpose back; a row's own entry is
    # on the diagonal.
    there = math.log(2) + math.log(2)
    back = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))
    assert float(memory_loss(g, readout, 0.5)) == pytest.approx(squared + (there + back) / 2 / 2)


def test_the_trivial_solution_is_not_a_minimum():
    zero, apart = torch.zeros(4, 4), torch.eye(4)
    assert memory_loss(apart, apart, 0.1) < 0.01 < memory_loss(zero, zero, 0.1)
