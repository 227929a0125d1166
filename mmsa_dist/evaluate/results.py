"""Results as they are published: one score per seed, means with spread, and the splits as files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa_dist.evaluate.metrics import both_classes
from mmsa_dist.evaluate.moleculenet import Metric
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData
from mmsa_dist.runtime.files import write_atomically

RESULTS = "results"
METRIC_NAMES: dict[Metric, str] = {"roc_auc": "ROC-AUC, %, higher is better", "rmse": "RMSE, lower is better",
                                   "mae": "MAE, lower is better"}  # fmt: skip


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
    metric: Metric
    value: float
    """NaN where no label has both classes among the test molecules."""
    valid: float
    """The same on the validation molecules, which choose the epoch of fine-tuning."""
    labels_scored: int
    """Labels that enter the mean; the others have one class only among the training or the test molecules."""
    labels: int
    test_molecules: int
    missing: int
    """Molecules of the task of which the method sees nothing; they are judged by what it says of the mean."""
    seconds: float


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
    valid: float
    values: tuple[float, ...]
    missing: int
    best: bool
    """Whether no method has a better mean on this task."""


@dataclass(frozen=True)
class Mean:
    """A method over the tasks of one metric that all methods are judged on."""

    metric: Metric
    features: str
    model: str
    tasks: tuple[str, ...]
    mean: float
    valid: float
    spread: float | None
    """Standard deviation over seeds of the mean over tasks."""
    best: bool


@dataclass(frozen=True)
class Results:
    """All scores of an evaluation."""

    scores: tuple[Score, ...]
    splits: tuple[tuple[Split, TaskData], ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What was judged, and how: for ``results.json``."""
    warnings: tuple[str, ...] = ()
    """What a reader must know besides."""

    def summaries(self) -> list[Summary]:
        """One line per task and method, in the order of the scores."""
        groups: dict[tuple[str, str, str], list[Score]] = defaultdict(list)
        for score in self.scores:
            groups[score.task, score.features, score.model].append(score)
        means = {key: _mean([s.value for s in group]) for key, group in groups.items()}
        lines = []
        for key, group in groups.items():
            values = tuple(s.value for s in group)
            lines.append(
                Summary(
                    task=key[0],
                    split=group[0].split,
                    metric=group[0].metric,
                    features=key[1],
                    model=key[2],
                    mean=means[key],
                    spread=_spread(values),
                    valid=_mean([s.valid for s in group]),
                    values=values,
                    missing=group[0].missing,
                    best=means[key] == _best([means[o] for o in groups if o[0] == key[0]], group[0].metric),
                )
            )
        return lines

    def means(self) -> list[Mean]:
        """One line per metric and method, where there are several tasks: regressions have units, and no mean.

        A task on which a method is not defined, for want of both classes, is left out for all of them.
        """
        lines = [line for line in self.summaries() if line.metric == "roc_auc"]
        undefined = {line.task for line in lines if math.isnan(line.mean)}
        tasks = tuple(dict.fromkeys(line.task for line in lines if line.task not in undefined))
        if len(tasks) < 2:
            return []
        methods = dict.fromkeys((line.features, line.model) for line in lines)
        by_method = {m: [x for x in lines if (x.features, x.model) == m and x.task in tasks] for m in methods}
        means = {m: statistics.fmean(x.mean for x in group) for m, group in by_method.items()}
        return [
            Mean(
                metric="roc_auc",
                features=features,
                model=model,
                tasks=tasks,
                mean=means[features, model],
                valid=_mean([x.valid for x in group]),
                spread=_spread_of_means([x.values for x in group]),
                best=means[features, model] == _best(list(means.values()), "roc_auc"),
            )
            for (features, model), group in by_method.items()
        ]

    def notes(self) -> list[str]:
        """Sentences without which the numbers would be read wrongly."""
        sentences = list(self.warnings)
        for _, data in {data.task.name: (split, data) for split, data in self.splits}.values():
            if data.dropped:
                sentences.append(
                    f"{data.task.name}: {len(data.dropped)} of {len(data) + len(data.dropped)} rows do not parse and "
                    f"are left out (record {', '.join(str(row + 1) for row, _ in data.dropped[:10])}"
                    f"{', ...' if len(data.dropped) > 10 else ''})"
                )
        for split, data in self.splits:
            blind = sum(not both_classes(y) for y in data.labels[split.valid].T)
            if data.task.kind == "classification" and blind:
                seed = "" if split.seed is None else f", seed {split.seed}"
                sentences.append(
                    f"{data.task.name}{seed}: {blind} of {data.labels.shape[1]} labels have one class among the "
                    "validation molecules, and have no validation value"
                )
        for task, scored, labels in sorted({(s.task, s.labels_scored, s.labels) for s in self.scores}):
            if scored == 0:
                sentences.append(
                    f"{task}: no label has both classes among the training and the test molecules; it enters no mean"
                )
            elif scored < labels:
                sentences.append(
                    f"{task}: {scored} of {labels} labels have both classes among the training and the test molecules; "
                    "the others are left out of the mean"
                )
        for task, features, missing in sorted({(s.task, s.features, s.missing) for s in self.scores if s.missing}):
            sentences.append(f"{task}: {features} sees nothing of {missing} molecules, which are given the mean")
        return sentences

    def to_markdown(self) -> str:
        """A table per metric, methods down and tasks across, the best of each task in bold."""
        parts = []
        for table in self.tables():
            columns = ["features", "model", *table.columns]
            lines = [f"{table.title}\n", "| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(table.columns)]
            for row in table.rows:
                cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
                lines.append("| " + " | ".join([row.features, row.model, *cells]) + " |")
            parts.append("\n".join(lines))
        if notes := self.notes():
            parts.append("\n".join(f"- {note}" for note in notes))
        return "\n\n".join(parts) + "\n"

    def tables(self) -> list[Table]:
        """A table per metric, as it is printed and written."""
        lines, means = self.summaries(), self.means()
        tables = []
        for metric in dict.fromkeys(line.metric for line in lines):
            of_metric = [line for line in lines if line.metric == metric]
            tasks = list(dict.fromkeys(line.task for line in of_metric))
            cells = {(x.features, x.model, x.task): Cell(format_value(x), x.best) for x in of_metric}
            mean = {(x.features, x.model): Cell(format_value(x), x.best) for x in means if x.metric == metric}
            rows = [
                Row(*m, tuple([cells[(*m, t)] for t in tasks] + ([mean[m]] if mean else [])))
                for m in dict.fromkeys((x.features, x.model) for x in of_metric)
            ]
            of_all = [*(f"mean of {len(x.tasks)}" for x in means[:1])] if mean else []
            title = f"{METRIC_NAMES[metric]}; {of_metric[0].split} split"
            tables.append(Table(title, tuple(tasks + of_all), tuple(rows)))
        return tables

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``results.{json,csv,md}`` and ``splits/*.json`` into `folder`, which is returned."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {(s.digest, d.task.name): s.write(folder / "splits", d).name for s, d in self.splits}
        about = {
            **self.about,
            "tasks": {
                data.task.name: {"digest": data.digest, "molecules": len(data), "dropped": len(data.dropped)}
                for _, data in self.splits
            },
            "notes": self.notes(),
            "means": [plain(line) for line in self.means()],
            "summaries": [plain(line) for line in self.summaries()],
            "scores": [
                plain(score) | {"split_file": files.get((score.split_digest, score.task))} for score in self.scores
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


@dataclass(frozen=True)
class Cell:
    """A number of a table."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """A method of a table."""

    features: str
    model: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Methods down, tasks across."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def format_value(line: Summary | Mean) -> str:
    """Mean and spread with as many digits as the metric deserves."""
    if math.isnan(line.mean):
        return "not defined"
    scale, digits = (100, 1) if line.metric == "roc_auc" else (1, 3)
    spread = "" if line.spread is None else f" ± {scale * line.spread:.{digits}f}"
    return f"{scale * line.mean:.{digits}f}{spread}"


def plain(item: Any) -> dict[str, Any]:
    """A dataclass or a dictionary as JSON can hold it: NaN is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, tuple):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    values = item if isinstance(item, dict) else dataclasses.asdict(item)
    return {name: finite(value) for name, value in values.items()}


def score_from_plain(values: Mapping[str, Any]) -> Score:
    """The score of which `plain` made `values`."""
    undefined: dict[str, Any] = {name: math.nan for name in ("value", "valid") if values[name] is None}
    return Score(**{**values, **undefined})


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _best(means: list[float], metric: Metric) -> float:
    known = [value for value in means if not math.isnan(value)]
    return (max if metric == "roc_auc" else min)(known, default=math.nan)


def _spread_of_means(values: list[tuple[float, ...]]) -> float | None:
    """Of the mean over tasks, seed by seed; a method that ran once on a task has that value with every seed."""
    seeds = max(len(of_task) for of_task in values)
    return _spread([statistics.fmean(of_task[seed % len(of_task)] for of_task in values) for seed in range(seeds)])


def _spread(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return statistics.stdev(known) if len(known) > 1 else None
