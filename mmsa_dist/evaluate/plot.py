"""A picture of the results: every seed a dot, the mean a bar across, their spread a line, a panel for each task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmsa_dist.evaluate.results import METRIC_NAMES, Results, Summary

_PANELS_ACROSS = 3
_OURS, _OTHERS = "#1b6ca8", "#8a8f98"


def plot_results(results: Results, path: Path) -> None:
    """Draws `results` into a PNG; there is none where nothing is defined."""
    lines = [line for line in results.summaries() if not math.isnan(line.mean)]
    if lines:
        drawn(lines).savefig(path, dpi=160)
    else:
        path.unlink(missing_ok=True)


def drawn(lines: Sequence[Summary]) -> Figure:
    """The picture of results that are defined, methods from top to bottom as in the table."""
    tasks = list(dict.fromkeys(line.task for line in lines))
    methods = list(dict.fromkeys(f"{line.features}\n{line.model}" for line in lines))
    across = min(_PANELS_ACROSS, len(tasks))
    down = -(-len(tasks) // across)
    size = (1.6 + 3.2 * across, down * (1.1 + 0.42 * len(methods)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        for line in lines:
            if line.task == task:
                _draw(axis, line, methods.index(f"{line.features}\n{line.model}"))
        metric = next(line.metric for line in lines if line.task == task)
        axis.set_title(task, loc="left", fontweight="bold", fontsize=10)
        axis.set_xlabel(METRIC_NAMES[metric], fontsize=8)
        axis.set_yticks(range(len(methods)), methods, fontsize=8)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", color="#e3e5e8", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    return figure


def _draw(axis: Axes, line: Summary, row: int) -> None:
    scale = 100 if line.metric == "roc_auc" else 1
    ours = line.features.startswith(("MMSA", "GIN")) and "no pre-training" not in line.features
    colour = _OURS if ours else _OTHERS
    values = scale * np.array([value for value in line.values if not math.isnan(value)])
    spread = scale * (line.spread or 0.0)
    mean = scale * line.mean
    axis.plot([mean - spread, mean + spread], [row, row], color=colour, linewidth=2, alpha=0.5)
    axis.scatter(values, np.full(len(values), row), s=16, color=colour, alpha=0.6, linewidths=0)
    axis.plot([mean, mean], [row - 0.22, row + 0.22], color=colour, linewidth=2.5)
    weight = "bold" if line.best else "normal"
    axis.annotate(
        f"{mean:.{1 if scale == 100 else 2}f}", (mean, row - 0.25), ha="center", va="bottom",
        fontsize=7, fontweight=weight, color=colour,
    )  # fmt: skip
