"""Tanimoto's similarity, and Nyström's method: features whose products are the values of a kernel.

n and m molecules, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LANDMARKS = 1000

Kernel = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]
"""(n, D) and (m, D) to (n, m), positive semi-definite."""


def features_of_kernel(
    kernel: Kernel, learned: NDArray[Any], wanted: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features whose products are the kernel's values, by at most `LANDMARKS` of the molecules to learn from.

    Nyström's method (Williams and Seeger 2001); with as many landmarks as molecules it is exact.

    Args:
        kernel: of which features are made.
        learned: (n, D) molecules to learn from.
        wanted: (m, D) molecules to predict; no landmark is among them.

    Returns:
        (n, L) and (m, L) float64, L at most `LANDMARKS`.
    """
    landmarks = learned
    if len(learned) > LANDMARKS:
        landmarks = learned[np.random.default_rng(0).choice(len(learned), LANDMARKS, replace=False)]
    values, axes = np.linalg.eigh(kernel(landmarks, landmarks))
    kept = values > 1e-9 * values[-1]
    whiten = axes[:, kept] / np.sqrt(values[kept])
    return kernel(learned, landmarks) @ whiten, kernel(wanted, landmarks) @ whiten


def tanimoto_kernel(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Tanimoto's similarity of (n, D) and (m, D) features that are 0 or 1: (n, m); of two without any it is 1."""
    both = (a @ b.T).astype(np.float64)
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0)
