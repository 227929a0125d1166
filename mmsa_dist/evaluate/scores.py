"""Scores of a job, per label, and their serialization."""

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
"""Columns of `PER_LABEL`."""


@dataclass(frozen=True)
class LabelScore:
    """Result of one label of a `Score`."""

    label: str
    value: float
    """NaN if the label is not scored."""
    reason: str
    """Why it is not scored; empty if it is."""


@dataclass(frozen=True)
class Score:
    """Score of one method with one seed on the test molecules of one split."""

    task: str
    split: str
    split_source: str | None
    """Name of the file, for a split from a file."""
    split_digest: str
    seed: int
    features: str
    model: str
    metric: MetricName
    value: float
    """NaN if no label can be scored, for example because each lacks a class."""
    valid: float
    """The same metric on the validation molecules, which select the epoch of fine-tuning."""
    labels_scored: int
    """Labels in the mean; the others lack values or a class in training or test."""
    labels: int
    test_molecules: int
    missing: int
    """Molecules without features, scored with the mean prediction."""
    seconds: float
    per_label: tuple[LabelScore, ...] = ()

    def without_labels(self) -> dict[str, Any]:
        """Returns all fields except `per_label`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "per_label"}


def label_rows(scores: Iterable[Score]) -> Iterator[dict[str, Any]]:
    """Yields the rows of ``results_per_label.csv``: the score that a label belongs to, and its result."""
    for score in scores:
        for label in score.per_label:
            row = {name: getattr(score, name, None) for name in OF_A_LABEL}
            yield row | dataclasses.asdict(label)


def plain(item: Any) -> dict[str, Any]:
    """Converts a dataclass or dictionary to JSON-compatible values: NaN becomes None."""

    def finite(value: Any) -> Any:
        if isinstance(value, tuple):
            return [finite(v) for v in value]
        if isinstance(value, dict):
            return {name: finite(v) for name, v in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return finite(item if isinstance(item, dict) else dataclasses.asdict(item))


def score_from_plain(values: Mapping[str, Any]) -> Score:
    """Restores a score from the `values` that `plain` returned for it."""
    undefined: dict[str, Any] = {name: math.nan for name in ("value", "valid") if values[name] is None}
    labels = tuple(
        LabelScore(**{**label, "value": math.nan if label["value"] is None else label["value"]})
        for label in values.get("per_label", ())
    )
    return Score(**{**values, **undefined, "per_label": labels})
