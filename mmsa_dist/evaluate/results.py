"""Results as they are published: one line per seed, means with spread beside it, and the splits as files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import Metric, TaskData
from mmsa_dist.runtime.files import write_atomically

RESULTS = "results"
_METRIC_NAMES = {"roc_auc": "ROC-AUC", "rmse": "RMSE", "mae": "MAE"}


@dataclass(frozen=True)
class Score:
    """What one method reached with one seed on the test molecules of one split."""

    task: str
    split: str
    split_digest: str
    seed: int
    features: str
    model: str
    metric: Metric
    value: float
    labels_scored: int
    """Labels that enter the mean; the others have one class only among the test molecules."""
    labels: int
    test_molecules: int


@dataclass(frozen=True)
class Summary:
    """A method on a task, over its seeds."""

    task: str
    split: str
    metric: Metric
    features: str
    model: str
    mean: float
    spread: float | None
    """Standard deviation over runs; None where there is one run, as for a method without randomness."""
    values: tuple[float, ...]
    best: bool
    """Whether no method has a better mean on this task."""


@dataclass(frozen=True)
class Results:
    """All scores of an evaluation."""

    scores: tuple[Score, ...]
    splits: tuple[tuple[Split, TaskData], ...] = ()
    without_vector: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """By task: molecules that have no vector and were given the mean one."""
    model_digest: str = ""

    def summaries(self) -> list[Summary]:
        """One line per task and method, in the order of the scores."""
        groups: dict[tuple[str, str, str, str], list[Score]] = defaultdict(list)
        for score in self.scores:
            groups[score.task, score.split, score.features, score.model].append(score)
        means = {key: _mean([s.value for s in group]) for key, group in groups.items()}
        lines = []
        for key, group in groups.items():
            rivals = [means[other] for other in groups if other[:2] == key[:2] and not math.isnan(means[other])]
            best = max(rivals, default=math.nan) if group[0].metric == "roc_auc" else min(rivals, default=math.nan)
            values = tuple(s.value for s in group)
            lines.append(
                Summary(
                    task=key[0],
                    split=key[1],
                    metric=group[0].metric,
                    features=key[2],
                    model=key[3],
                    mean=means[key],
                    spread=statistics.stdev(values) if len(values) > 1 else None,
                    values=values,
                    best=means[key] == best,
                )
            )
        return lines

    def to_markdown(self) -> str:
        """A table of means and spreads, the best of each task in bold."""
        lines = ["| task | split | metric | features | model | test | runs |", "|---|---|---|---|---|---:|---:|"]
        for line in self.summaries():
            value = format_value(line)
            shown = f"**{value}**" if line.best else value
            metric = _METRIC_NAMES[line.metric] + (" ↑" if line.metric == "roc_auc" else " ↓")
            lines.append(
                f"| {line.task} | {line.split} | {metric} | {line.features} | {line.model} | {shown} "
                f"| {len(line.values)} |"
            )
        return "\n".join(lines) + "\n"

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``results.{json,csv,md}`` and ``splits/*.json`` into `folder`, which is returned."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {(s.digest, d.task.name): s.write(folder / "splits", d).name for s, d in self.splits}
        about = {
            "model_digest": self.model_digest,
            "without_vector": dict(self.without_vector),
            "summaries": [_plain(line) for line in self.summaries()],
            "scores": [
                _plain(score) | {"split_file": files.get((score.split_digest, score.task))} for score in self.scores
            ],
        }
        write_atomically(folder / f"{RESULTS}.json", json.dumps(about, indent=2, allow_nan=False) + "\n")
        write_atomically(folder / f"{RESULTS}.csv", self._to_csv())
        write_atomically(folder / f"{RESULTS}.md", self.to_markdown())
        return folder

    def _to_csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in dataclasses.fields(Score)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(score) for score in self.scores)
        return text.getvalue()


def format_value(line: Summary) -> str:
    """Mean and spread with as many digits as the metric deserves."""
    if math.isnan(line.mean):
        return "not defined"
    scale, digits = (100, 1) if line.metric == "roc_auc" else (1, 3)
    spread = "" if line.spread is None else f" ± {scale * line.spread:.{digits}f}"
    return f"{scale * line.mean:.{digits}f}{spread}"


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _plain(item: Any) -> dict[str, Any]:
    """A dataclass as JSON can hold it: NaN is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, tuple):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: finite(value) for name, value in dataclasses.asdict(item).items()}
