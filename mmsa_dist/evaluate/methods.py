"""What is compared: a method turns a task, a split and a seed into predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData

Progress = Callable[[str], None]
"""Is told in a few words what is being done."""


@dataclass(frozen=True)
class Inputs:
    """What a method sees of the n molecules of a task."""

    value: Any
    missing: int = 0
    """Molecules that it does not see, because nothing could be made of them."""


@dataclass(frozen=True)
class Outcome:
    """What a method predicts, and how it came to it. n molecules, T labels."""

    predictions: NDArray[np.float64]
    """(n, T); the test molecules count, others may be NaN."""
    valid: float
    """The metric on the validation molecules at what was chosen; NaN where it is not defined."""
    curve: tuple[dict[str, float], ...] = ()
    """What was seen at each epoch, where there are epochs."""


FitPredict = Callable[[Any, TaskData, Split, int, Progress], Outcome]
"""(value of the inputs, task, split, seed, progress) to predictions."""


@dataclass(frozen=True)
class Method:
    """A line of the table."""

    features: str
    """What it sees, as the table calls it."""
    model: str
    """What is fitted, likewise."""
    make: Callable[[TaskData], Inputs]
    """Makes its inputs for a task, once for all splits and seeds."""
    fit_predict: FitPredict
    """Must be picklable."""
    seeded: bool
    """Whether the outcome depends on the seed even where the split does not."""
    identity: str
    """All that the outcome depends on besides task, split and seed, such as the digest of the model."""
    gpu: bool = False
    """Whether it uses a GPU where there is one."""
