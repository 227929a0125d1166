"""Spherical Bessel functions and real spherical harmonics, the basis in which ComENet expands an edge.

L orders l = 0..L-1, N zeros n = 1..N, any leading shape `...`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bessel_zeros(orders: int, count: int) -> Tensor:
    """Returns (orders, count) float64: the first positive zeros z_ln of the spherical Bessel functions j_l.

    Those of j_0 = sin(x)/x are n·π; bisection finds the zero of j_l between two successive ones of j_{l-1}.
    """
    zeros = torch.arange(1, count + orders, dtype=torch.float64) * math.pi
    rows = [zeros[:count]]
    for order in range(1, orders):
        low, high = zeros[:-1].clone(), zeros[1:].clone()
        sign_low = spherical_bessel(order, low).sign()
        for _ in range(64):  # more than the 53 bits of a float64
            middle = (low + high) / 2
            left = spherical_bessel(order, middle).sign() == sign_low
            low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        zeros = (low + high) / 2
        rows.append(zeros[:count])
    return torch.stack(rows)


def spherical_bessel(order: int, x: Tensor) -> Tensor:
    """Returns j_l(x), l = `order`, for x ≥ 0, in the shape and precision of `x`.

    j_0 = sin x / x, j_1 = (j_0 − cos x)/x, j_{l+1} = (2l + 1) j_l / x − j_{l−1}. Near zero, where that
    recurrence loses precision, the power series x^l/(2l + 1)!! · (1 − x²/2/(2l + 3) + ...) is used.
    """
    near = x < (order + 1) / 2
    beyond = torch.where(near, 1.0, x)  # keeps the gradient of the branch not taken finite
    return torch.where(near, _power_series(order, x), _recurrence(order, beyond))


def spherical_harmonics(orders: int, theta: Tensor, phi: Tensor) -> list[Tensor]:
    """Returns for l = 0..orders-1 the real Y_lm(θ, φ), (2l + 1, ...), m = -l..l.

    Orthonormal on the sphere, without the Condon-Shortley sign: Y_{1,-1..1} ∝ (y, z, x) of the unit vector.

    Args:
        orders: number of orders l.
        theta: (...) polar angle, radians.
        phi: (...) azimuth, radians, of the shape of `theta`.
    """
    legendre = _associated_legendre(orders, theta)
    harmonics = []
    for order in range(orders):
        of_m = {0: _norm(order, 0) * legendre[order, 0]}
        for m in range(1, order + 1):
            of_m[m] = _norm(order, m) * legendre[order, m] * (m * phi).cos()
            of_m[-m] = _norm(order, m) * legendre[order, m] * (m * phi).sin()
        harmonics.append(torch.stack([of_m[m] for m in range(-order, order + 1)]))
    return harmonics


def zonal_harmonics(orders: int, angle: Tensor) -> list[Tensor]:
    """Returns for l = 0..orders-1 Y_l0(angle) = √((2l + 1)/4π) P_l(cos angle), (...)."""
    legendre = _associated_legendre(orders, angle)
    return [_norm(order, 0) * legendre[order, 0] for order in range(orders)]


def _norm(order: int, m: int) -> float:
    ratio = math.factorial(order - m) / math.factorial(order + m)
    return math.sqrt((2 * order + 1) / (4 * math.pi) * ratio * (1 if m == 0 else 2))


def _recurrence(order: int, x: Tensor) -> Tensor:
    before, value = x.cos() / x, x.sin() / x  # j_{-1} and j_0
    for lower in range(order):
        before, value = value, (2 * lower + 1) / x * value - before
    return value


def _power_series(order: int, x: Tensor) -> Tensor:
    square = x * x
    total = torch.ones_like(x)
    for k in range(7, 0, -1):  # Horner's scheme
        total = 1 - square * total / (2 * k * (2 * order + 2 * k + 1))
    return x**order / math.prod(range(1, 2 * order + 2, 2)) * total


def _associated_legendre(orders: int, theta: Tensor) -> dict[tuple[int, int], Tensor]:
    """Returns P_l^m(cos θ) by (l, m ≥ 0), without the Condon-Shortley sign."""
    cos, sin = theta.cos(), theta.sin()
    p = {}
    for m in range(orders):
        p[m, m] = math.prod(range(1, 2 * m, 2)) * sin**m
        if m + 1 < orders:
            p[m + 1, m] = (2 * m + 1) * cos * p[m, m]
        for order in range(m + 2, orders):
            p[order, m] = ((2 * order - 1) * cos * p[order - 1, m] - (order + m - 1) * p[order - 2, m]) / (order - m)
    return p
