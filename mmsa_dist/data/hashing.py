"""A hash of whole numbers, for choices that must be repeated without any saved state, and for keys of structures.

The last step of SplitMix64 (Steele, Lea, Flood 2014), in numpy and in torch, which has no unsigned arithmetic.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

STEP = 0x9E3779B97F4A7C15
"""What SplitMix64 adds before it mixes, without which 0 would stay 0."""

_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(state: np.ndarray) -> np.ndarray:
    """(n,) uint64 to (n,) uint64, one to one."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return state ^ (state >> np.uint64(31))


def mix_tensor(state: Tensor) -> Tensor:
    """(n,) int64 to (n,) int64 on any device: the bits that `mix` gives for the same bits."""
    state = (state ^ _shifted(state, 30)) * signed(_FIRST)
    state = (state ^ _shifted(state, 27)) * signed(_SECOND)
    return state ^ _shifted(state, 31)


def share_tensor(state: Tensor) -> Tensor:
    """(n,) int64, mixed, to (n,) float64 in [0, 1)."""
    return _shifted(state, 11).double() / (1 << 53)


def signed(word: int) -> int:
    """The int64 of the same 64 bits as an unsigned word."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(state: Tensor, places: int) -> Tensor:
    return (state >> places) & ((1 << (64 - places)) - 1)  # torch carries the sign along
