"""The form in which all benchmarks report: the table that they print, and the JSON that `--json` writes."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One number that was measured, and what it is held against."""

    name: str
    value: float
    unit: str = ""
    """Such as ``s``, ``/s``, ``MB``, ``%``, or ``x`` for a ratio; empty for a count."""
    least: float | None = None
    """What is required at least."""
    most: float | None = None
    """What is required at most."""
    aim: float | None = None
    """What it should become."""
    baseline: str = ""
    """What was measured beside it in the same run."""

    @property
    def verdict(self) -> str:
        """Whether the requirement is met, and by how much it is not; empty where there is none."""
        if self.least is not None and self.value < self.least:
            return f"NOT reached: {1 - self.value / self.least:.1%} short"
        if self.most is not None and self.value > self.most:
            return f"NOT reached: {self.value / self.most - 1:.1%} over"
        return "" if self.least is None and self.most is None else "reached"

    def cells(self) -> dict[str, str]:
        """The line of the table, by the heading of its column."""
        required = ("≥ ", self.least) if self.most is None else ("≤ ", self.most)
        return {
            "figure": self.name,
            "measured": _shown(self.value, self.unit),
            "required": "" if required[1] is None else required[0] + _shown(required[1], self.unit),
            "verdict": self.verdict,
            "aim": "" if self.aim is None else _shown(self.aim, self.unit),
            "baseline in the same run": self.baseline,
        }


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a benchmark, which has ``--json``, from its docstring."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return made


def publish(title: str, figures: Sequence[Figure], file: Path | None, *, libraries: Sequence[str] = ()) -> None:
    """Prints the figures as a table, and writes them to `file` if there is one.

    Args:
        title: what was measured, under which conditions.
        figures: the lines of the table.
        file: for ``{"title": …, "machine": …, "versions": …, "figures": […]}`` as JSON.
        libraries: distributions whose versions matter.
    """
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    versions = {name: importlib.metadata.version(name) for name in libraries}
    heading = ", ".join([title, machine, *(f"{name} {version}" for name, version in versions.items())])
    table = Table(title=heading, title_justify="left")
    rows = [figure.cells() for figure in figures]
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    for name in columns:
        table.add_column(name, justify="right" if name in ("measured", "required", "aim") else "left")
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    Console(width=150).print(table)
    if file is not None:
        found = {"title": title, "machine": machine, "versions": versions, "figures": [asdict(f) for f in figures]}
        file.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def _shown(value: float, unit: str) -> str:
    """A number with about three digits, so that what misses its requirement by little does not look the same."""
    if isinstance(value, int):
        number = f"{value:,}"
    else:
        size = abs(value)
        number = f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"
    return f"{number}{unit}" if unit in ("x", "/s") else f"{number} {unit}".rstrip()
