"""The Tanimoto kernel, and Nyström features, whose inner products approximate a kernel.

n and m molecules, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LANDMARKS = 1000

Kernel = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]
"""(n, D) and (m, D) to (n, m) kernel values, positive semi-definite."""


def features_of_kernel(
    kernel: Kernel, learned: NDArray[Any], wanted: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Computes features whose inner products approximate a kernel, from at most `LANDMARKS` training molecules.

    This is Nyström's method (Williams and Seeger 2001), exact if all training molecules are landmarks.

    Args:
        kernel: kernel to approximate.
        learned: (n, D) molecules to learn from.
        wanted: (m, D) molecules to predict, never used as landmarks.

    Returns:
        (n, L) and (m, L) float64, L <= `LANDMARKS`.
    """
    landmarks = learned
    if len(learned) > LANDMARKS:
        landmarks = learned[np.random.default_rng(0).choice(len(learned), LANDMARKS, replace=False)]
    values, axes = np.linalg.eigh(kernel(landmarks, landmarks))
    kept = values > 1e-9 * values[-1]
    whiten = axes[:, kept] / np.sqrt(values[kept])
    return kernel(learned, landmarks) @ whiten, kernel(wanted, landmarks) @ whiten


def tanimoto_kernel(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the (n, m) Tanimoto similarity of (n, D) and (m, D) binary features; 1 for two all-zero rows."""
    both = (a @ b.T).astype(np.float64)
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0)
