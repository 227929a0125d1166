"""Dropout by bytes."""

from __future__ import annotations

import pytest
import torch

from mmsa_dist.encoders.dropout import Dropout


@pytest.mark.parametrize("p", [0.5, 0.1, 0.9, 0.001])
def test_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(501, 999, requires_grad=True)
    y = Dropout(p)(x)
    share = max(round(p * 256), 1) / 256
    deviation = (share * (1 - share) / x.numel()) ** 0.5
    assert (y == 0).float().mean().item() == pytest.approx(share, abs=5 * deviation)
    assert y.max().item() == pytest.approx(1 / (1 - share), rel=1e-6)
    assert y.mean().item() == pytest.approx(1, abs=5 * deviation / (1 - share))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()), "what was dropped hears nothing"


def test_rows_columns_and_draws_are_independent():
    torch.manual_seed(0)
    dropout = Dropout(0.5)
    kept = (dropout(torch.ones(4000, 16)) > 0).float()
    assert torch.corrcoef(kept.T).fill_diagonal_(0).abs().max() < 0.08
    assert not torch.equal(kept, (dropout(torch.ones(4000, 16)) > 0).float())
    torch.manual_seed(0)
    assert torch.equal(kept, (dropout(torch.ones(4000, 16)) > 0).float())


def test_does_nothing_outside_of_training_or_at_zero():
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
