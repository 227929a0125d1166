"""A hash of integers, for choices that must be repeatable without saved state and for ids of substructures.

The finalizer of SplitMix64 (Steele, Lea, Flood 2014), in numpy and in torch, which has no unsigned arithmetic.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

STEP = 0x9E3779B97F4A7C15
"""What SplitMix64 adds before mixing; without it, 0 would map to 0."""

_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(state: np.ndarray) -> np.ndarray:
    """Maps (n,) uint64 to (n,) uint64, one to one."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return state ^ (state >> np.uint64(31))


def mix_tensor(state: Tensor) -> Tensor:
    """Maps (n,) int64 to (n,) int64 on any device, bit for bit as `mix`."""
    state = (state ^ _shifted(state, 30)) * signed(_FIRST)
    state = (state ^ _shifted(state, 27)) * signed(_SECOND)
    return state ^ _shifted(state, 31)


def share_tensor(state: Tensor) -> Tensor:
    """Maps mixed (n,) int64 to (n,) float64 in [0, 1)."""
    return _shifted(state, 11).double() / (1 << 53)


def signed(word: int) -> int:
    """Returns the int64 with the same bits as an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)  # torch's shift extends the sign
