"""A hash of whole numbers, for choices that must be repeated without any saved state."""

from __future__ import annotations

import numpy as np


def mix(state: np.ndarray) -> np.ndarray:
    """(n,) uint64 to (n,) uint64, one to one: the last step of SplitMix64 (Steele, Lea, Flood 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
