"""Warnings about a run that continues but does not learn, which say what to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class _Symptom:
    """A symptom, and what to do about it."""

    meter: str
    is_bad: Callable[[float, Mapping[str, float]], bool]
    warning: str
    """The warning, with ``{value}`` for the value of the meter."""


_SYMPTOMS = (
    _Symptom(
        "memory/anchor_entropy",
        lambda value, _: value < 0.3,
        "anchors collapse: the entropy of their use is {value:.2f} of 1, so nearly all molecules use a few of them; "
        "raise model.structure.temperature, or lower loss.memory or train.lr",
    ),
    _Symptom(
        "memory/g_norm",
        lambda value, _: value < 1e-3,
        "structure-aware embeddings vanish: their mean length is {value:.1e}; lower loss.memory or train.weight_decay",
    ),
    _Symptom(
        "memory/g_cosine",
        lambda value, _: value > 0.95,
        "structure-aware embeddings become alike: the mean cosine of two molecules is {value:.3f}; raise loss.contrast "
        "or data.batch_size, lower model.structure.k or train.lr",
    ),
    _Symptom(
        "valid/retrieval_at_1",
        lambda value, scalars: value < 1.5 * scalars.get("valid/chance", 0.0),
        "the codes of one molecule do not find each other: retrieval@1 is {value:.3f}, no better than chance; lower "
        "train.lr, raise train.warmup_steps, or check data.augment and loss.contrast",
    ),
)


class Health:
    """Warns of each symptom once, and again only after it has gone away in between.

    Args:
        quiet_steps: number of steps at the beginning without warnings, because an untrained model has every symptom.
    """

    def __init__(self, quiet_steps: int) -> None:
        self._quiet_steps = quiet_steps
        self._warned: set[str] = set()

    def look(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        """Returns a warning for each symptom that begins at `step`; absent meters and NaN give none."""
        warnings = []
        for symptom in _SYMPTOMS:
            value = scalars.get(symptom.meter, math.nan)
            if step <= self._quiet_steps or math.isnan(value):
                continue
            if not symptom.is_bad(value, scalars):
                self._warned.discard(symptom.meter)
            elif symptom.meter not in self._warned:
                self._warned.add(symptom.meter)
                warnings.append(f"warning at step {step}: {symptom.warning.format(value=value)}")
        return warnings
