"""Methods under comparison: each turns a task, a split and a seed into predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

FINE_TUNED = "fine-tuned"
"""`Method.model` of rows whose epoch the validation molecules choose."""

Progress = Callable[[str], None]
"""Called with a short description of the current step."""


@dataclass(frozen=True)
class Inputs:
    """Input of a method for the n molecules of a task."""

    value: Any
    missing: int = 0
    """Molecules without input, because they could not be represented."""


@dataclass(frozen=True)
class Outcome:
    """Predictions of a method and its training history. n molecules, T labels."""

    predictions: NDArray[np.float64]
    """(n, T); only the test molecules count, others may be NaN."""
    valid: float
    """Metric on the validation molecules for the chosen model; NaN if undefined."""
    curve: tuple[dict[str, float], ...] = ()
    """Values per epoch, for methods with epochs."""


FitPredict = Callable[[Any, TaskData, Split, int, Progress], Outcome]
"""(value of the inputs, task, split, seed, progress) to an outcome."""


@dataclass(frozen=True)
class Method:
    """A row of the results table."""

    features: str
    """Name of its input in the table."""
    model: str
    """Name of the fitted model in the table."""
    make: Callable[[TaskData], Inputs]
    """Makes the inputs for a task, once for all splits and seeds."""
    fit_predict: FitPredict
    """Must be picklable."""
    seeded: bool
    """Whether the outcome depends on the seed even where the split does not."""
    identity: str
    """Everything the outcome depends on besides task, split and seed, such as the digest of the model."""
    gpu: bool = False
    """Whether it uses a GPU if available."""
