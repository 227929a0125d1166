"""Signs of a run that goes wrong though it goes on, in words that say what to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class _Sign:
    """One thing that can be wrong."""

    meter: str
    is_bad: Callable[[float, Mapping[str, float]], bool]
    words: str
    """With ``{value}`` for the meter."""


_SIGNS = (
    _Sign(
        "memory/anchor_entropy",
        lambda value, _: value < 0.3,
        "anchors collapse: the entropy of their use is {value:.2f} of 1, so a few of them take nearly all molecules; "
        "raise model.structure.temperature, or lower loss.memory or train.lr",
    ),
    _Sign(
        "memory/g_norm",
        lambda value, _: value < 1e-3,
        "structure-aware embeddings vanish: their mean length is {value:.1e}; lower loss.memory or train.weight_decay",
    ),
    _Sign(
        "memory/g_cosine",
        lambda value, _: value > 0.95,
        "structure-aware embeddings become alike: the mean cosine of two molecules is {value:.3f}; raise loss.contrast "
        "or data.batch_size, lower model.structure.k or train.lr",
    ),
    _Sign(
        "valid/retrieval_at_1",
        lambda value, scalars: value < 1.5 * scalars.get("valid/chance", 0.0),
        "codes of one molecule do not find each other: retrieval@1 is {value:.3f}, no better than chance; lower "
        "train.lr, lengthen train.warmup_steps, or look whether data.augment or loss.contrast is set as meant",
    ),
)


class Health:
    """Says what is wrong once when it begins, and again only after it was right in between.

    Args:
        quiet_steps: steps at the beginning of a run in which nothing is said: an untrained model is all of this.
    """

    def __init__(self, quiet_steps: int) -> None:
        self._quiet_steps = quiet_steps
        self._said: set[str] = set()

    def look(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        """Returns a sentence for each sign that begins at `step`; meters that are absent or NaN say nothing."""
        news = []
        for sign in _SIGNS:
            value = scalars.get(sign.meter, math.nan)
            if step <= self._quiet_steps or math.isnan(value):
                continue
            if not sign.is_bad(value, scalars):
                self._said.discard(sign.meter)
            elif sign.meter not in self._said:
                self._said.add(sign.meter)
                news.append(f"warning at step {step}: {sign.words.format(value=value)}")
        return news
