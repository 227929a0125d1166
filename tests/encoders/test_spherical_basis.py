from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special

from mmsa_dist.encoders.spherical_basis import (
    bessel_zeros,
    spherical_bessel,
    spherical_harmonics,
    zonal_harmonics,
)

ORDERS = 6


def test_zeros_of_the_first_two_orders():
    zeros = bessel_zeros(2, 3)
    torch.testing.assert_close(zeros[0], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) * math.pi)
    # Roots of tan x = x, Abramowitz & Stegun table 4.19.
    torch.testing.assert_close(
        zeros[1], torch.tensor([4.49341, 7.72525, 10.90412], dtype=torch.float64), rtol=0, atol=5e-6
    )


def test_zeros_are_the_first_and_all_of_them():
    zeros = bessel_zeros(ORDERS, 5).numpy()
    grid = np.linspace(0.5, zeros.max() + 0.01, 200_001)
    for order in range(ORDERS):
        np.testing.assert_allclose(special.spherical_jn(order, zeros[order]), 0, atol=1e-12)
        crossings = np.flatnonzero(np.diff(np.sign(special.spherical_jn(order, grid))))
        np.testing.assert_allclose(zeros[order], grid[crossings[:5]], atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-6)], ids=["f64", "f32"])
@pytest.mark.parametrize("order", range(ORDERS))
def test_bessel_equals_scipy(order, dtype, tolerance):
    x = torch.cat([torch.tensor([0.0, 1e-6, 1e-3]), torch.linspace(0.01, 25, 2_000)]).to(dtype)
    expected = special.spherical_jn(order, x.double().numpy())
    np.testing.assert_allclose(spherical_bessel(order, x).double().numpy(), expected, atol=tolerance, rtol=0)


def test_bessel_has_finite_gradients_at_zero():
    x = torch.zeros(3, requires_grad=True)
    torch.stack([spherical_bessel(order, x) for order in range(4)]).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 1 / 3))  # j_1' (0) = 1/3, of the others 0


def test_first_harmonics_by_hand():
    theta, phi = torch.tensor(0.7), torch.tensor(-2.1)
    y0, y1 = spherical_harmonics(2, theta, phi)
    x, y, z = math.sin(0.7) * math.cos(-2.1), math.sin(0.7) * math.sin(-2.1), math.cos(0.7)
    torch.testing.assert_close(y0, torch.tensor([math.sqrt(1 / (4 * math.pi))]))
    torch.testing.assert_close(y1, math.sqrt(3 / (4 * math.pi)) * torch.tensor([y, z, x]))


def test_harmonics_equal_scipy():
    generator = torch.Generator().manual_seed(0)
    theta = math.pi * torch.rand(50, generator=generator, dtype=torch.float64)
    phi = 2 * math.pi * (torch.rand(50, generator=generator, dtype=torch.float64) - 0.5)
    for order, harmonics in enumerate(spherical_harmonics(ORDERS, theta, phi)):
        for m in range(-order, order + 1):
            complex_ = special.sph_harm_y(order, abs(m), theta.numpy(), phi.numpy())
            sign = (-1) ** m * math.sqrt(2)  # scipy has the Condon-Shortley sign
            expected = complex_.real if m == 0 else sign * (complex_.real if m > 0 else complex_.imag)
            np.testing.assert_allclose(harmonics[m + order].numpy(), expected, atol=1e-12)


def test_zonal_harmonics_are_those_of_m_zero():
    angle = torch.linspace(-3, 3, 20, dtype=torch.float64)
    for order, (zonal, all_m) in enumerate(
        zip(zonal_harmonics(4, angle), spherical_harmonics(4, angle, torch.zeros_like(angle)), strict=True)
    ):
        torch.testing.assert_close(zonal, all_m[order])
