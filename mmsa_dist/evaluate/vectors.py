"""Inputs of simple models: embeddings, fingerprints, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmsa_dist.evaluate.fingerprints import ecfp4
from mmsa_dist.evaluate.methods import Inputs
from mmsa_dist.evaluate.tasks import TaskData

if TYPE_CHECKING:
    from mmsa_dist.embed.embedder import Embedder


def embedded(embedder: Embedder, data: TaskData) -> Inputs:
    """Returns the (n, D) float32 vectors of `embedder`; NaN for molecules that it rejects."""
    result = embedder.embed(data.smiles)
    return Inputs(result.vectors, missing=len(result.invalid))


def fingerprints(data: TaskData) -> Inputs:
    """Returns (n, 2048) uint8 ECFP4 fingerprints."""
    return Inputs(ecfp4(data.smiles))


def nothing(data: TaskData) -> Inputs:
    """Returns (n, 0) float32."""
    return Inputs(np.empty((len(data), 0), np.float32))
