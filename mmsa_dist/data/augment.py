"""Random choices per molecule and epoch that do not depend on the batch, the rank or the worker that makes them.

Each choice is a hash of (seed, epoch, molecule, purpose), so a resumed run repeats it without saved state.
"""

from __future__ import annotations

import numpy as np

from mmsa_dist.data.hashing import STEP, mix
from mmsa_dist.data.pictures import Pose

_SMALLEST_SCALE = 0.8


def random_pose(index: np.ndarray, *, seed: int, epoch: int) -> Pose:
    """Draws an angle, a flip with probability 1/2 and a scale in [0.8, 1] for each molecule of `index`."""
    angle, flip, scale = (_uniform(index, seed, epoch, purpose) for purpose in range(3))
    return Pose(
        angle=(2 * np.pi * angle).astype(np.float32),
        flip=flip < 0.5,
        scale=(_SMALLEST_SCALE + (1 - _SMALLEST_SCALE) * scale).astype(np.float32),
    )


def random_conformer(index: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Draws (n,) int64 in [0, 2^31), to be taken modulo the number of conformers."""
    return (_uniform(index, seed, epoch, 3) * 2**31).astype(np.int64)


def _uniform(index: np.ndarray, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """Returns (n,) float64 in [0, 1): SplitMix64 (Steele, Lea, Flood 2014) of the four numbers."""
    with np.errstate(over="ignore"):
        state = index.astype(np.uint64)
        for word in (purpose, epoch, seed):
            state = mix(state + np.uint64(STEP) * np.uint64(word + 1))
    return (state >> np.uint64(11)).astype(np.float64) / 2**53
