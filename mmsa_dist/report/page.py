"""The report: one HTML page that needs no network and can be written at any time during a run.

Quantities that are not measured yet are marked so. Ids, SMILES and messages come from files and are escaped: Jinja
escapes what is in the page, and what the script reads is packed (`ChemicalSpace.payload`) and shown as text.
"""

from __future__ import annotations

import base64
import datetime
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mmsa_dist import __version__
from mmsa_dist.evaluate.moleculenet import METRICS, Metric
from mmsa_dist.report.figures import Figure, Line, bars, chemical_map, counts, curve
from mmsa_dist.report.groups import MOST_READ, Groups, by_prefix, by_shards
from mmsa_dist.report.record import RunRecord, Series, read_record
from mmsa_dist.report.space import ChemicalSpace, Picture
from mmsa_dist.report.style import FONT
from mmsa_dist.report.templates import environment
from mmsa_dist.runtime.files import write_text_atomically
from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_dist.structure.memory import dead_anchors
from mmsa_shards.shard import ShardError

_NEAR = 5
_ANCHORS_SHOWN, _PER_ANCHOR = 6, 4
_ELEMENTS_SHOWN = 16
_FEWEST = 3  # molecules needed for a map

Progress = Callable[[str], None]
Rows = list[list[Figure]]
"""Figures of a section, row by row."""


def write_report(run_dir: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
    """Writes ``report.html`` into a run folder and returns its path.

    Args:
        run_dir: folder of a run in any state.
        progress: called with a short description of each stage.

    Raises:
        FileNotFoundError: the folder does not exist or is not a run folder.
    """
    say = progress or (lambda words: None)
    say("reading the run")
    record = read_record(run_dir)
    space = None if record.embeddings is None else ChemicalSpace(record.embeddings)
    context = _of_the_run(record) | {"few": None, "space": None, "anchors": None}
    figures = _training_figures(record) | {"molecules": _molecule_figures(record), "map": [], "usage": []}
    if space is not None and len(space) < _FEWEST:
        context["few"] = len(space)
    elif space is not None:
        figures["map"], context["space"] = _map(record, space, say)
        figures["usage"], context["anchors"] = _anchors(record, space)
    say("writing the page")
    context |= _in_bokeh(figures)
    path = RunFolder(record.root).report
    write_text_atomically(path, environment().get_template("page.html").render(context))
    return path


def _of_the_run(record: RunRecord) -> dict[str, Any]:
    """Returns the template context of the run, without figures."""
    return {
        "record": record,
        "title": record.root.resolve().name,
        "facts": _facts(record),
        "tiles": _tiles(record),
        "ledger": asdict(record.manifest.ledger) if record.manifest else {},
        "sheet": None if record.sheet is None else Markup(base64.b64encode(record.sheet).decode()),
        "evaluation": _evaluation(record.evaluation) if record.evaluation else None,
        "evaluation_notes": record.evaluation.get("notes", []) if record.evaluation else [],
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "font": Markup(FONT),
    }


def _in_bokeh(figures: Mapping[str, Rows]) -> dict[str, Any]:
    """Returns the elements of all figures by section, and the scripts that draw them.

    All figures form one document: if one of them had no element in the page, Bokeh would draw none.
    """
    from bokeh.embed import components
    from bokeh.resources import Resources

    plots = [figure.plot for rows in figures.values() for row in rows for figure in row]
    script, divs = components(plots) if plots else ("", ())
    places = iter(divs)
    return {
        "figures": {
            section: [[figure.with_words(next(places)) for figure in row] for row in rows if row]
            for section, rows in figures.items()
        },
        "bokeh": Markup(Resources(mode="inline", components=["bokeh"]).render_js() if plots else ""),
        "figure_script": Markup(script),
    }


def _map(record: RunRecord, space: ChemicalSpace, say: Progress) -> tuple[Rows, dict[str, Any]]:
    """Returns the map of chemical space and its template context."""
    say(f"drawing {len(space):,} molecules")
    properties = space.properties()
    say(f"mapping {len(space):,} vectors by {space.method}")
    groups, untold = _groups(record, space)
    plot = chemical_map(space.coordinates(), groups[0].of, len(groups[0].labels))
    return [[plot]], {
        "layout": space.layout,
        "shown": len(space),
        "in_all": space.in_all,
        "origin": space.shown.summary.origin,
        "groups": groups,
        "untold": untold,
        "properties": list(properties),
        "payload": Markup(space.payload(groups, properties)),
        "gallery": space.gallery(_NEAR),
    }


def _anchors(record: RunRecord, space: ChemicalSpace) -> tuple[Rows, dict[str, Any] | None]:
    """Returns anchor usage and the molecules of the most used anchors; nothing if the vectors have no anchors."""
    attention = None if record.model is None else space.anchors(record.model)
    if attention is None:
        return [], None
    usage = attention.mean(axis=0)
    shares = bars(
        "Share of attention per anchor",
        np.sort(usage)[::-1],
        label="anchors, the most used first",
        reference=1 / len(usage),
    )
    return [[shares]], _anchor_gallery(space, attention)


def _groups(record: RunRecord, space: ChemicalSpace) -> tuple[list[Groups], str]:
    """Returns the groups that can colour the dots, and the reason if some are missing."""
    groups, untold = [space.clusters.groups], ""
    if record.manifest is not None and not space.shown.summary.origin.standardize:
        untold = (
            "Not by split and conformer source: molecules were embedded as given, and the shards hold their parents."
        )
    elif record.manifest is not None:
        try:
            found = by_shards(record.shards, record.manifest, space.shown.smiles)
            groups += found or ()
            if found is None:
                untold = f"Not by split and conformer source: the shards hold more than {MOST_READ:,} molecules."
        except ShardError as error:
            untold = f"Not by split and conformer source: {error}"
    if (prefixes := by_prefix(space.shown.ids)) is not None:
        groups.append(prefixes)
    return groups, untold


def _training_figures(record: RunRecord) -> dict[str, Rows]:
    """Returns figures of the available metrics by section."""
    metrics = record.metrics

    def curves(metric: str, title: str, reach: tuple[float, float] | None = None, height: int = 200) -> list[Figure]:
        if metric not in metrics:
            return []
        return [curve(title, [Line(title, metrics[metric])], reach=reach, height=height)]

    losses: list[Figure] = []
    for name in sorted(metrics):
        if name.startswith("train/") and name.endswith("_loss") and any(metrics[name].values):
            words = name.removeprefix("train/").removesuffix("_loss").replace("_", " ")
            losses += curves(name, f"{words.capitalize()} loss")
    retrieval: list[Figure] = []
    if "valid/retrieval_at_1" in metrics:
        lines = [Line("retrieval@1", metrics["valid/retrieval_at_1"])]
        if "valid/chance" in metrics:
            lines.append(Line("chance", metrics["valid/chance"], reference=True))
        retrieval = [curve("Retrieval at 1", lines, reach=(0, 0.1), height=260)]
    return {
        "training": [
            curves("train/loss", "Total loss", height=260),
            losses,
            curves("molecules_per_s", "Molecules a second", (0, 1))
            + curves("data_wait_s", "Seconds a step waits for data", (0, 0.01)),
        ],
        "retrieval": [
            retrieval,
            curves("valid/alignment", "Squared distance of codes (0 to 4)", (0, 1))
            + curves("valid/uniformity", "Uniformity (0 = alike, −4 = spread)", (-1, 0)),
        ],
        "anchors": [
            curves("memory/anchor_entropy", "Entropy of anchor usage (1 = all alike)", (0, 1))
            + curves("memory/dead_anchors", "Dead anchors", (0, 5))
            + curves("memory/g_cosine", "Mean cosine between two molecules", (0, 0.2)),
        ],
        "bank": [
            curves("bank/recall", "Recall of the index against exact search", (0, 1))
            + curves("bank/age_mean", "Mean age of a bank row, steps", (0, 1)),
        ],
    }


def _molecule_figures(record: RunRecord) -> Rows:
    """Returns histograms of the prepared molecules."""
    found = record.molecules
    if found is None or not found.molecules_read:
        return []
    elements = list(found.molecules_by_element.items())[:_ELEMENTS_SHOWN]
    return [
        [
            counts(
                "Molecules", [str(size.least) for size in found.sizes], [size.molecules for size in found.sizes],
                label="heavy atoms, at least",
            ),
            counts(
                "Molecules that hold it", [name for name, _ in elements], [n for _, n in elements], label="element"
            ),
        ]
    ]  # fmt: skip


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    """Returns the facts in the head of the page."""
    facts = []
    if record.config is not None:
        facts += [
            ("modalities", " + ".join(record.config.model.encoders)),
            ("batch", f"{record.config.data.batch_size:,} molecules"),
            ("precision", record.config.train.precision),
        ]
    if record.manifest is not None:
        facts.insert(0, ("molecules", f"{record.manifest.ledger.written:,}"))
    git = (record.environment or {}).get("git") or {}
    if git.get("revision"):
        facts.append(("revision", git["revision"][:10] + (" + changes" if git.get("changed") else "")))
    if record.model is not None:
        facts.append(("model", record.model.digest[:12]))
    return facts


def _tiles(record: RunRecord) -> list[dict[str, str]]:
    """Returns the key figures of a run."""
    tiles = []
    if record.metrics:
        total = record.config.train.steps if record.config else None
        share = f"of {total:,}" if total else ""
        tiles.append({"name": "steps", "value": f"{record.steps:,}", "note": share})
    if (loss := record.metrics.get("train/loss")) is not None:
        tiles.append({"name": "loss", "value": f"{loss.last:.3f}", "note": f"{loss.values[0]:.3f} at first"})
    hits, chance = record.last("valid/retrieval_at_1"), record.last("valid/chance")
    if hits is not None:
        note = f"{hits / chance:.0f} × chance" if chance else "on held-out molecules"
        tiles.append({"name": "retrieval@1", "value": f"{100 * hits:.1f} %", "note": note})
    dead, entropy = record.last("memory/dead_anchors"), record.last("memory/anchor_entropy")
    if dead is not None:
        of = f"of {record.config.model.structure.anchors}" if record.config else ""
        note = f"{of} · entropy {entropy:.2f}" if entropy is not None else of
        tiles.append({"name": "dead anchors", "value": f"{dead:.0f}", "note": note})
    if (speed := record.metrics.get("molecules_per_s")) is not None:
        tiles.append({"name": "molecules/s", "value": f"{_median(speed):,.0f}", "note": "median of training"})
    return tiles


def _median(series: Series) -> float:
    return float(np.median(series.values))


def _anchor_gallery(space: ChemicalSpace, attention: np.ndarray) -> dict[str, Any]:
    """Returns the most used anchors with the molecules that attend to each most."""
    usage = attention.mean(axis=0)
    shown = np.argsort(-usage, kind="stable")[:_ANCHORS_SHOWN]
    gallery: list[tuple[int, float, list[Picture]]] = []
    for anchor in shown:
        rows = np.argsort(-attention[:, anchor], kind="stable")[:_PER_ANCHOR]
        pictures = [space.picture(int(row), f"{attention[row, anchor]:.2f}") for row in rows]
        gallery.append((int(anchor), float(usage[anchor]), pictures))
    return {"count": len(usage), "dead": dead_anchors(usage), "gallery": gallery}


def _evaluation(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns one table per task and split, with lines in the order of `mmsa_dist.evaluate`."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for line in results.get("summaries", ()):
        key = line["task"], line["split"]
        metric = METRICS.get(line["metric"], Metric(line["metric"], higher_is_better=False, scale=1, digits=3))
        table = tables.setdefault(
            key,
            {
                "task": line["task"],
                "split": line["split"],
                "metric": metric.label,
                "better": metric.better,
                "lines": [],
            },
        )
        table["lines"].append(
            {
                "features": line["features"],
                "model": line["model"],
                "mean": "" if line["mean"] is None else metric.show(line["mean"]),
                "spread": "" if line["spread"] is None else metric.show(line["spread"]),
                "runs": len(line["values"]),
                "best": line["best"],
            }
        )
    return list(tables.values())
