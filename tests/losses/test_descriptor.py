"""The loss that asks vectors for the descriptors of their molecules."""

from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.losses.descriptor import FARTHEST, DescriptorLoss, DescriptorScale, descriptor_scale

NAN = math.nan


def test_the_scale_is_that_of_the_known_values() -> None:
    scale = descriptor_scale(torch.tensor([[1.0, 7.0, NAN, 1e9], [3.0, 7.0, NAN, 3e9], [5.0, 7.0, NAN, NAN]]))
    assert scale.mean_F.tolist() == [3.0, 7.0, 0.0, 2e9]
    torch.testing.assert_close(scale.deviation_F, torch.tensor([math.sqrt(8 / 3), 1.0, 1.0, 1e9]))


def test_the_error_is_counted_in_standard_deviations() -> None:
    loss = DescriptorLoss(1, DescriptorScale(torch.tensor([10.0, 0.0]), torch.tensor([2.0, 1.0])))
    torch.nn.init.zeros_(loss.head.weight)
    loss.head.bias.data = torch.tensor([0.5, 0.0])
    # (0.5 - 1)², (0 - 3)²; and (0.5 - -FARTHEST)² for what lies far below, nothing for what is not known.
    descriptors = torch.tensor([[12.0, 3.0], [-1e6, NAN]])
    expected = [(0.25 + 9) / 2, (0.5 + FARTHEST) ** 2 / 2]
    assert loss(torch.ones(2, 1), descriptors).tolist() == pytest.approx(expected)


def test_unknown_values_pull_nowhere() -> None:
    loss = DescriptorLoss(2, DescriptorScale(torch.zeros(2), torch.ones(2)))
    loss(torch.ones(1, 2), torch.tensor([[NAN, 5.0]])).sum().backward()
    assert loss.head.weight.grad is not None
    assert loss.head.weight.grad[0].tolist() == [0.0, 0.0]
    assert (loss.head.weight.grad[1] != 0).all()


def test_the_scale_stays_with_the_weights() -> None:
    saved = DescriptorLoss(2, DescriptorScale(torch.full((3,), 4.0), torch.full((3,), 5.0))).state_dict()
    other = DescriptorLoss(2, DescriptorScale(torch.zeros(3), torch.ones(3)))
    other.load_state_dict(saved)
    assert other.mean_F.tolist() == [4.0] * 3
    assert other.deviation_F.tolist() == [5.0] * 3
