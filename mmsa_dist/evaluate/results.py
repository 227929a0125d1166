"""Results for publication: one score per seed, means with spread, and the splits as files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa_dist.evaluate.markdown import table_cell
from mmsa_dist.evaluate.moleculenet import METRICS, MetricName
from mmsa_dist.evaluate.notes import notes_on
from mmsa_dist.evaluate.provenance import departures, in_words
from mmsa_dist.evaluate.scores import OF_A_LABEL, PER_LABEL, Score, label_rows, plain
from mmsa_dist.evaluate.splits import Split
from mmsa_dist.evaluate.tasks import TaskData
from mmsa_dist.runtime.files import write_text_atomically

RESULTS = "results"


@dataclass(frozen=True)
class Summary:
    """A method on a task, aggregated over seeds."""

    task: str
    split: str
    metric: MetricName
    features: str
    model: str
    mean: float
    """Mean over the seeds for which the metric is defined."""
    spread: float | None
    """Standard deviation over runs; None for a single run, as for a method without randomness."""
    valid: float
    """Mean validation value over the same seeds; NaN if one of them has none."""
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    """Seed of each value."""
    missing: int
    best: bool
    """Whether no method has a better mean on the task."""


@dataclass(frozen=True)
class Mean:
    """A method over all tasks of one metric that are defined for every method."""

    metric: MetricName
    features: str
    model: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    """Seeds for which all tasks are defined; mean and spread are over these."""
    mean: float
    valid: float
    """Mean validation value over the same tasks and seeds; NaN if one of them has none."""
    spread: float | None
    """Standard deviation, over seeds, of the mean over tasks."""
    values: tuple[float, ...]
    """Means over tasks, one per seed with which the method ran."""
    best: bool


@dataclass(frozen=True)
class Results:
    """All scores of an evaluation."""

    scores: tuple[Score, ...]
    splits: tuple[tuple[Split, TaskData], ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What was evaluated and how, for ``results.json``."""
    warnings: tuple[str, ...] = ()
    """Further notes for a reader."""

    def summaries(self) -> list[Summary]:
        """Returns one line per task and method, in the order of the scores."""
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
                    valid=_mean_of_all([s.valid for s in group if not math.isnan(s.value)]),
                    values=values,
                    seeds=tuple(s.seed for s in group),
                    missing=group[0].missing,
                    best=means[key] == _best([means[o] for o in groups if o[0] == key[0]], group[0].metric),
                )
            )
        return lines

    def means(self) -> list[Mean]:
        """Returns one line per method with its mean over classification tasks, if there are several.

        Regressions have units, and so no mean. A task that lacks a class, and so is undefined for some method, is left
        out for all methods; so is a seed for which one of the tasks is undefined.
        """
        tasks, common = self._mean_tasks_and_seeds()
        if len(tasks) < 2 or not common:
            return []
        lines = [line for line in self.summaries() if line.task in tasks]
        of_seed = _scores_by_seed(self.scores)
        runs = {m: _runs([[of_seed[seed][t, *m] for t in tasks] for seed in common]) for m in _methods(lines)}
        values = {m: tuple(statistics.fmean(s.value for s in run) for run in of_m) for m, of_m in runs.items()}
        means = {m: statistics.fmean(of_method) for m, of_method in values.items()}
        return [
            Mean(
                metric="roc_auc",
                features=features,
                model=model,
                tasks=tasks,
                seeds=common,
                mean=means[features, model],
                valid=_mean_of_all([s.valid for run in runs[features, model] for s in run]),
                spread=_spread(values[features, model]),
                values=values[features, model],
                best=means[features, model] == _best(list(means.values()), "roc_auc"),
            )
            for features, model in runs
        ]

    def _mean_tasks_and_seeds(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Returns the tasks in the mean over tasks, and the seeds for which all of them are defined."""
        lines = [line for line in self.summaries() if line.metric == "roc_auc"]
        undefined = {line.task for line in lines if math.isnan(line.mean)}
        tasks = tuple(dict.fromkeys(line.task for line in lines if line.task not in undefined))
        runs = [(task, *method) for task in tasks for method in _methods(lines)]
        return tasks, tuple(
            seed
            for seed, scores in _scores_by_seed(self.scores).items()
            if all(run in scores and not math.isnan(scores[run].value) for run in runs)
        )

    def notes(self) -> list[str]:
        """Returns the caveats that a reader needs to interpret the numbers."""
        tasks, common = self._mean_tasks_and_seeds()
        seeds = {score.seed for score in self.scores}
        sentences = [*self.warnings, *departures(self.about), *notes_on(self.scores, self.splits)]
        if len(tasks) > 1 and len(common) < len(seeds):
            numbers = ", ".join(map(str, common)) or "none"
            sentences.append(
                f"the mean over tasks covers {len(common)} of {len(seeds)} seeds, those for which all of its tasks "
                f"are defined: {numbers}"
            )
        return sentences

    def to_markdown(self) -> str:
        """Returns one Markdown table per metric: methods as rows, tasks as columns, the best of each task in bold."""
        parts = []
        for table in self.tables():
            columns = ["features", "model", *map(table_cell, table.columns)]
            lines = [f"{table.title}\n", "| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(table.columns)]
            for row in table.rows:
                cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
                lines.append("| " + " | ".join([table_cell(row.features), table_cell(row.model), *cells]) + " |")
            parts.append("\n".join(lines))
        of_data = {data.task.name: data.digest for _, data in self.splits}
        of_splits = {f"{data.task.name}{split.which}": split.digest for split, data in self.splits}
        if notes := [*in_words(self.about, of_data, of_splits), *self.notes()]:
            parts.append("\n".join(f"- {note}" for note in notes))
        return "\n\n".join(parts) + "\n"

    def tables(self) -> list[Table]:
        """Returns one table per metric, for printing and writing."""
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
            shown = METRICS[metric]
            title = f"{shown.label}, {shown.better} is better; {of_metric[0].split} split"
            tables.append(Table(title, tuple(tasks + of_all), tuple(rows)))
        return tables

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``results.{json,csv,md}``, ``results_per_label.csv`` and ``splits/*.json`` into `folder`.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {(s.digest, d.task.name): s.write(folder / "splits", d).name for s, d in self.splits}
        about = {
            **self.about,
            "tasks": {
                data.task.name: {
                    "digest": data.digest,
                    "molecules": len(data),
                    "dropped": [
                        {"record": row + 1, "smiles": text, "reason": reason}
                        for (row, text), reason in zip(data.dropped, data.reasons, strict=True)
                    ],
                }
                for _, data in self.splits
            },
            "notes": self.notes(),
            "means": [plain(line) for line in self.means()],
            "summaries": [plain(line) for line in self.summaries()],
            "scores": [
                plain(score.without_labels()) | {"split_file": files.get((score.split_digest, score.task))}
                for score in self.scores
            ],
        }
        write_text_atomically(folder / f"{RESULTS}.json", json.dumps(about, indent=2, allow_nan=False) + "\n")
        columns = [field.name for field in dataclasses.fields(Score) if field.name != "per_label"]
        write_text_atomically(folder / f"{RESULTS}.csv", _csv(columns, (s.without_labels() for s in self.scores)))
        write_text_atomically(folder / PER_LABEL, _csv(OF_A_LABEL, label_rows(self.scores)))
        write_text_atomically(folder / f"{RESULTS}.md", self.to_markdown())
        return folder


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """A row of a table: one method."""

    features: str
    model: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table with methods as rows and tasks as columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def format_value(line: Summary | Mean) -> str:
    """Formats mean and spread with the digits of the metric."""
    if math.isnan(line.mean):
        return "not defined"
    metric = METRICS[line.metric]
    spread = "" if line.spread is None else f" ± {metric.show(line.spread)}"
    return f"{metric.show(line.mean)}{spread}"


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain(dict(row)) for row in rows)  # undefined values become empty fields
    return text.getvalue()


def _methods(lines: Iterable[Summary]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((line.features, line.model) for line in lines))


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _mean_of_all(values: list[float]) -> float:
    """Returns the mean; NaN if any value is NaN or there is none."""
    return statistics.fmean(values) if values else math.nan


def _best(means: list[float], metric: MetricName) -> float:
    known = [value for value in means if not math.isnan(value)]
    return (max if METRICS[metric].higher_is_better else min)(known, default=math.nan)


def _scores_by_seed(scores: Sequence[Score]) -> dict[int, dict[tuple[str, str, str], Score]]:
    """Returns the scores that count for each seed, by task, features and model.

    The score of a method that ran once on a split counts for every seed with that split.
    """
    split_of = {(score.task, score.seed): score.split_digest for score in scores}
    splits: dict[str, set[str]] = defaultdict(set)
    ran: dict[tuple[str, str, str], list[Score]] = defaultdict(list)
    for score in scores:
        splits[score.task].add(score.split_digest)
        ran[score.task, score.features, score.model].append(score)
    found: dict[int, dict[tuple[str, str, str], Score]] = {seed: {} for seed in sorted({s.seed for s in scores})}
    for seed, of_seed in found.items():
        for run, of_run in ran.items():
            task = run[0]
            digest = split_of.get((task, seed), next(iter(splits[task])) if len(splits[task]) == 1 else None)
            fits = [score for score in of_run if score.seed == seed or score.split_digest == digest]
            if fits:
                of_seed[run] = next((score for score in fits if score.seed == seed), fits[0])
    return found


def _runs(of_seeds: Sequence[Sequence[Score]]) -> list[Sequence[Score]]:
    """Returns the scores on all tasks for each seed, without seeds that repeat the same scores."""
    return list({tuple(score.seed for score in of_seed): of_seed for of_seed in of_seeds}.values())


def _spread(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return statistics.stdev(known) if len(known) > 1 else None
