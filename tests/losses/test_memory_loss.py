"""The alignment loss in one process; over ranks in tests/distributed/test_neighbours.py."""

from __future__ import annotations

import pytest
import torch

from mmsa_dist.losses.contrast import info_nce
from mmsa_dist.losses.memory import memory_loss


def test_is_squared_error_plus_info_nce():
    generator = torch.Generator().manual_seed(0)
    g, readout = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = (g - readout).square().mean() + info_nce(g, readout, 0.1)
    assert float(memory_loss(g, readout, 0.1)) == pytest.approx(float(expected))


def test_the_trivial_solution_is_not_a_minimum():
    zero, apart = torch.zeros(4, 4), torch.eye(4)
    assert memory_loss(apart, apart, 0.1) < 0.01 < memory_loss(zero, zero, 0.1)
