"""Plot of the results: one panel per task, seeds as dots, their mean as a bar, their spread as a line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmsa_dist.evaluate.moleculenet import METRICS
from mmsa_dist.evaluate.results import Mean, Results, Summary

_PANELS_ACROSS = 3
_OURS, _OTHERS = "#1b6ca8", "#8a8f98"
_LEGEND = "dot: a seed · bar and figure: mean over seeds · line: ± one standard deviation over seeds"


def plot_results(results: Results, path: Path) -> None:
    """Plots `results` to a PNG, or removes the file if no value is defined."""
    if any(not math.isnan(line.mean) for line in results.summaries()):
        drawn(results).savefig(path, dpi=160)
    else:
        path.unlink(missing_ok=True)


def drawn(results: Results) -> Figure:
    """Returns the figure: methods in rows as in the table, and panels for the tasks and their mean."""
    lines, means = results.summaries(), results.means()
    panels: dict[str, list[Summary | Mean]] = {}
    for line in lines:
        panels.setdefault(line.task, []).append(line)
    if means:
        panels[f"mean of {len(means[0].tasks)}"] = [*means]
    methods = list(dict.fromkeys(f"{line.features}\n{line.model}" for line in lines))
    across = min(_PANELS_ACROSS, len(panels))
    down = -(-len(panels) // across)
    size = (1.6 + 3.2 * across, 0.8 + down * (1.1 + 0.42 * len(methods)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, of_panel) in zip(axes.flat, panels.items(), strict=False):
        for shown in of_panel:
            _draw(axis, shown, methods.index(f"{shown.features}\n{shown.model}"))
        metric = METRICS[of_panel[0].metric]
        axis.set_title(name, loc="left", fontweight="bold", fontsize=10)
        axis.set_xlabel(f"{metric.label}, {metric.better} is better", fontsize=8)
        axis.set_yticks(range(len(methods)), methods, fontsize=8)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.tick_params(axis="x", labelsize=8)
        if all(math.isnan(shown.mean) for shown in of_panel):
            axis.set_xticks([])  # no value to read off
        axis.grid(axis="x", color="#e3e5e8", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    seeds = len({score.seed for score in results.scores})
    protocol = [f"protocol {results.about['protocol']}"] if "protocol" in results.about else []
    facts = [*protocol, f"{lines[0].split} split", f"{seeds} seed{'s' if seeds > 1 else ''}"]
    figure.suptitle(f"{' · '.join(facts)}\n{_LEGEND}", x=0.01, ha="left", fontsize=7, wrap=True)
    return figure


def _draw(axis: Axes, line: Summary | Mean, row: int) -> None:
    metric = METRICS[line.metric]
    ours = line.features.startswith(("MMSA", "GIN")) and "no pre-training" not in line.features
    colour = _OURS if ours else _OTHERS
    if math.isnan(line.mean):
        axis.text(
            0.5, row, "not defined", transform=axis.get_yaxis_transform(), ha="center", va="center",
            fontsize=7, color=colour,
        )  # fmt: skip
        return
    values = metric.scale * np.array([value for value in line.values if not math.isnan(value)])
    spread = metric.scale * (line.spread or 0.0)
    mean = metric.scale * line.mean
    axis.plot([mean - spread, mean + spread], [row, row], color=colour, linewidth=2, alpha=0.5)
    axis.scatter(values, np.full(len(values), row), s=16, color=colour, alpha=0.6, linewidths=0)
    axis.plot([mean, mean], [row - 0.22, row + 0.22], color=colour, linewidth=2.5)
    axis.annotate(
        metric.show(line.mean), (mean, row - 0.25), ha="center", va="bottom",
        fontsize=7, fontweight="bold" if line.best else "normal", color=colour,
    )  # fmt: skip
