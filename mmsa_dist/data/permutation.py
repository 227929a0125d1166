"""A permutation of n numbers that is computed on demand, not stored: a Feistel network.

The network (Luby, Rackoff 1988) permutes the pairs of numbers below the rounded-up root of n; a result of n or more
is permuted again until it is below n (cycle walking; Black, Rogaway 2002).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mmsa_dist.data.hashing import mix

_ROUNDS = 8


class Permutation:
    """A permutation of 0..n-1, a pure function of n and `key`.

    Args:
        n: at least 1.
        key: non-negative integers.
    """

    def __init__(self, n: int, key: tuple[int, ...]) -> None:
        self._n = n
        self._side = math.isqrt(n - 1) + 1
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def forward(self, numbers: np.ndarray) -> np.ndarray:
        """Maps `numbers`, (k,) int64, to their images, (k,) int64."""
        return self._walk(numbers, self._network)

    def inverse(self, numbers: np.ndarray) -> np.ndarray:
        """Maps `numbers`, (k,) int64, to their preimages, (k,) int64."""
        return self._walk(numbers, self._inverse_network)

    def _walk(self, numbers: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        result = step(numbers)
        while (outside := result >= self._n).any():
            result[outside] = step(result[outside])
        return result

    def _network(self, numbers: np.ndarray) -> np.ndarray:
        left, right = np.divmod(numbers, self._side)
        for key in self._keys:
            left, right = right, (left + self._round_function(right, key)) % self._side
        return left * self._side + right

    def _inverse_network(self, numbers: np.ndarray) -> np.ndarray:
        left, right = np.divmod(numbers, self._side)
        for key in self._keys[::-1]:
            left, right = (right - self._round_function(left, key)) % self._side, left
        return left * self._side + right

    def _round_function(self, half: np.ndarray, key: np.uint64) -> np.ndarray:
        with np.errstate(over="ignore"):
            return (mix(half.astype(np.uint64) + key) % np.uint64(self._side)).astype(np.int64)
