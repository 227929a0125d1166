from __future__ import annotations

import pytest
import torch
from torch import nn

from mmsa_dist.runtime.linear import Linear, LinearReLU


def pair(bias: bool = True, kind: type[nn.Linear] = Linear) -> tuple[nn.Linear, nn.Linear]:
    mine, torchs = kind(37, 21, bias=bias), nn.Linear(37, 21, bias=bias)
    torchs.load_state_dict(mine.state_dict())
    return mine, torchs


@pytest.mark.parametrize("rows", [0, 1, 2, 63, 1000])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("kind", [Linear, LinearReLU])
def test_values_and_gradients_equal_those_of_torch(rows, bias, kind):
    mine, torchs = pair(bias, kind)
    x, other = (torch.randn(rows, 37, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        other.copy_(x)
    ours, expected = mine(x), torchs(other).relu() if kind is LinearReLU else torchs(other)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    gradient = torch.randn(rows, 21)
    ours.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)
    for a, b in zip(mine.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_keeps_float32_precision():
    mine, _ = pair()
    x = torch.randn(500, 37)
    exact = nn.functional.linear(x.double(), mine.weight.double(), mine.bias.double())
    assert (mine(x).double() - exact).abs().max() < 1e-5  # bfloat16 inside would be off by 1e-2


def test_not_a_number_stays_so_behind_the_relu():
    clipped = LinearReLU(37, 21)
    with torch.no_grad():
        clipped.weight[3, 5] = torch.nan
    assert clipped(torch.randn(500, 37))[:, 3].isnan().all()


def test_frozen_weights_and_inputs_without_gradient():
    mine, _ = pair()
    mine.weight.requires_grad_(False)
    mine(torch.randn(4, 37)).sum().backward()
    assert mine.weight.grad is None
    torch.testing.assert_close(mine.bias.grad, torch.full((21,), 4.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["f64", "bf16"])
def test_other_precisions_are_torchs(dtype):
    mine, torchs = pair()
    x = torch.randn(5, 37, dtype=dtype)
    torch.testing.assert_close(mine.to(dtype)(x), torchs.to(dtype)(x), rtol=0, atol=0)
    clipped = LinearReLU(37, 21).to(dtype)
    clipped.load_state_dict(mine.state_dict())
    torch.testing.assert_close(clipped(x), torchs(x).relu(), rtol=0, atol=0)


def test_autocast_still_casts():
    mine, _ = pair()
    with torch.autocast("cpu", torch.bfloat16):
        assert mine(torch.randn(5, 37)).dtype == torch.bfloat16
