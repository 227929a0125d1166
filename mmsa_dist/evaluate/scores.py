"""What one job reached, label by label, and how that is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmsa_dist.evaluate.moleculenet import MetricName

PER_LABEL = "results_per_label.csv"
OF_A_LABEL = (
    *("task", "split", "split_source", "split_digest", "seed", "features", "model", "metric"),
    *("label", "value", "reason"),
)
"""Columns of that file."""


@dataclass(frozen=True)
class LabelScore:
    """What became of one label of a `Score`."""

    label: str
    value: float
    """NaN where it is not judged."""
    reason: str
    """Why it is not; empty where it is."""


@dataclass(frozen=True)
class Score:
    """What one method reached with one seed on the test molecules of one split."""

    task: str
    split: str
    split_source: str | None
    """The file of a split from a file."""
    split_digest: str
    seed: int
    features: str
    model: str
    metric: MetricName
    value: float
    """NaN where no label has both classes among the test molecules."""
    valid: float
    """The same on the validation molecules, which choose the epoch of fine-tuning."""
    labels_scored: int
    """Labels that enter the mean; the others have one class only among the training or the test molecules."""
    labels: int
    test_molecules: int
    missing: int
    """Molecules without features, which are scored with the mean prediction."""
    seconds: float
    per_label: tuple[LabelScore, ...] = ()

    def without_labels(self) -> dict[str, Any]:
        """All but `per_label`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "per_label"}


def label_rows(scores: Iterable[Score]) -> Iterator[dict[str, Any]]:
    """The rows of ``results_per_label.csv``: of which score a label is, and what became of it; empty for NaN."""
    for score in scores:
        for label in score.per_label:
            row = {name: getattr(score, name, None) for name in OF_A_LABEL}
            yield row | {**plain(label)}


def plain(item: Any) -> dict[str, Any]:
    """A dataclass or a dictionary as JSON can hold it: NaN is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, tuple):
            return [finite(v) for v in value]
        if isinstance(value, dict):
            return {name: finite(v) for name, v in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return finite(item if isinstance(item, dict) else dataclasses.asdict(item))


def score_from_plain(values: Mapping[str, Any]) -> Score:
    """The score of which `plain` made `values`."""
    undefined: dict[str, Any] = {name: math.nan for name in ("value", "valid") if values[name] is None}
    labels = tuple(
        LabelScore(**{**label, "value": math.nan if label["value"] is None else label["value"]})
        for label in values.get("per_label", ())
    )
    return Score(**{**values, **undefined, "per_label": labels})
