"""Statistics of a folder of shards as tables for a terminal."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmsa_dist.report.shard_statistics import ShardStatistics

_ELEMENTS_SHOWN = 12
_BAR = 40  # characters


def render_inspection(statistics: ShardStatistics) -> Group:
    """Returns the statistics as tables for ``rich.console.Console().print``."""
    parts: list[Table | Text] = [
        Text(f"{statistics.folder}  (manifest {statistics.digest[:12]})"),
        _splits(statistics),
        _ledger(statistics),
    ]
    if statistics.reject_reasons:
        parts.append(_reject_reasons(statistics))
    parts.append(_conformers(statistics))
    if statistics.standardization:
        parts.append(_standardization(statistics))
    if statistics.shared_ids.ids:
        parts.append(_shared_ids(statistics))
    if statistics.molecules_read:
        parts += [_atoms(statistics), _sizes(statistics), _elements(statistics)]
    return Group(*(piece for part in parts for piece in (part, Text())))


def _table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right", header_style="dim")
    return made


def _splits(s: ShardStatistics) -> Table:
    splits = _table("Shards", "split", "shards", "blocks", "molecules", "MB", "bytes/molecule")
    for split in s.splits:
        each = split.bytes / split.molecules if split.molecules else float("nan")
        splits.add_row(
            split.split,
            f"{split.shards:,}",
            f"{split.blocks:,}",
            f"{split.molecules:,}",
            f"{split.bytes / 1e6:,.1f}",
            f"{each:,.0f}",
        )
    return splits


def _ledger(s: ShardStatistics) -> Table:
    ledger = _table("Ledger", "records", "")
    for field in fields(s.ledger):
        ledger.add_row(field.name.replace("_", " "), f"{getattr(s.ledger, field.name):,}")
    return ledger


def _reject_reasons(s: ShardStatistics) -> Table:
    reasons = _table("Why records were rejected", "reason", "records")
    for reason, count in _falling(s.reject_reasons):
        reasons.add_row(Text(reason), f"{count:,}")
    return reasons


def _conformers(s: ShardStatistics) -> Table:
    sources = _table("Conformers", "from", "molecules", "share")
    for source, count in _falling(s.conformer_sources):
        sources.add_row(source, f"{count:,}", _percent(count, s.molecules))
    return sources


def _standardization(s: ShardStatistics) -> Table:
    changed = _table("What standardization changed", "by", "records", "share of those not rejected")
    for step, count in _falling(s.standardization):
        changed.add_row(step.replace("_", " "), f"{count:,}", _percent(count, s.ledger.read - s.ledger.rejected))
    return changed


def _shared_ids(s: ShardStatistics) -> Text:
    of = f"{s.shared_ids.molecules:,} of {s.molecules_read:,} molecules share {s.shared_ids.ids:,} ids, such as "
    return Text(of + ", ".join(s.shared_ids.examples))


def _atoms(s: ShardStatistics) -> Table:
    n = s.atoms_per_molecule
    title = f"Heavy atoms of {s.molecules_read:,} molecules"
    atoms = _table(title, *["mean", "least", "5%", "median", "95%", "most"], "bonds")
    quantiles = np.quantile(n, (0, 0.05, 0.5, 0.95, 1)).astype(int)
    atoms.add_row(f"{n.mean():.1f}", *(f"{q:,}" for q in quantiles), f"{s.bonds / len(n):.1f}")
    return atoms


def _sizes(s: ShardStatistics) -> Table:
    sizes = _table("Sizes", "heavy atoms", "molecules", "share")
    sizes.add_column()
    largest = max(size.molecules for size in s.sizes)
    for size in s.sizes:
        share = _percent(size.molecules, s.molecules_read)
        sizes.add_row(size.name, f"{size.molecules:,}", share, Bar(largest, 0, size.molecules, width=_BAR))
    return sizes


def _elements(s: ShardStatistics) -> Table:
    elements = _table("Elements", "element", "atoms", "share", "in molecules")
    elements.add_column()
    in_all = int(s.atoms_per_molecule.sum())
    for name, count in list(s.atoms_by_element.items())[:_ELEMENTS_SHOWN]:
        holding = s.molecules_by_element[name]
        bar = Bar(s.molecules_read, 0, holding, width=_BAR)
        elements.add_row(name, f"{count:,}", _percent(count, in_all), _percent(holding, s.molecules_read), bar)
    rare = list(s.atoms_by_element)[_ELEMENTS_SHOWN:]
    if rare:
        elements.add_row(f"{len(rare)} more", f"{sum(s.atoms_by_element[name] for name in rare):,}", "", "")
    return elements


def _falling(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else "–"
