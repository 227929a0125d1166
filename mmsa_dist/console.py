"""Console output while a command runs: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, cast

from rich.console import Console
from rich.filesize import decimal
from rich.measure import Measurement, measure_renderables
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from mmsa_dist.evaluate.results import Results
    from mmsa_shards.changes import Changes
    from mmsa_shards.manifest import Manifest

_SHARDS_NAMED = 8

_LINE_EVERY_S = 10.0  # between two lines without a terminal

_BESIDE_A_CELL, _BORDER = 3, 1  # a table cell has a space on either side and a border before it


def say(words: object) -> None:
    """Prints text or a table for the user."""
    _console().print(words)


def fail(words: str, status: int = 2) -> NoReturn:
    """Prints an error message to stderr and exits with `status`."""
    _console(stderr=True).print(f"mmsa: {words}")
    sys.exit(status)


def _console(*, stderr: bool = False) -> Console:
    """Returns a console that prints text verbatim: a SMILES may look like markup or an emoji."""
    return Console(stderr=stderr, soft_wrap=True, markup=False, emoji=False, highlight=False)


@contextmanager
def preparation_progress() -> Iterator[tuple[Callable[[str, int, int | None, int], None], Callable[[str], None]]]:
    """Shows the stages of a preparation; yields the progress and message callbacks for `mmsa_shards`."""
    with _Bars() as bars:

        def report(stage: str, done: int, total: int | None, rejected: int) -> None:
            bars.update(stage, done, total, f"{rejected:,} rejected" if rejected else "")

        yield report, bars.say


@contextmanager
def row_progress(stage: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows one stage that counts rows; yields the callback that takes (done, total)."""
    with _Bars() as bars:
        yield lambda done, total: bars.update(stage, done, total, "")


@contextmanager
def evaluation_progress() -> Iterator[
    tuple[Callable[[int, int, str], None], Callable[[int, int], None], Callable[[str], None]]
]:
    """Shows evaluation jobs and the search for leaks; yields a progress callback for each, and one for messages."""
    with _Bars(rated=False) as bars:
        yield (
            lambda done, total, words: bars.update("evaluate", done, total, words),
            lambda done, total: bars.update("look for leaks", done, total, ""),
            bars.say,
        )


@contextmanager
def download_progress() -> Iterator[tuple[Callable[[int, int | None, str], None], Callable[[str], None]]]:
    """Shows one bar for all bytes; yields the progress and message callbacks for `mmsa_shards`."""
    with _Bars(in_bytes=True) as bars:
        yield (lambda received, total, note: bars.update("download", received, total, note)), bars.say


class _Bars:
    """One progress bar per stage, created at its first update."""

    def __init__(self, in_bytes: bool = False, rated: bool = True) -> None:
        self._rated = rated
        self._in_bytes = in_bytes
        self._console = _console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            DownloadColumn() if in_bytes else MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # Takes the width that the other columns leave; longer notes are truncated.
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            console=self._console,
            disable=not self._console.is_terminal,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._spoke = time.monotonic()
        self._finished: set[str] = set()

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, stage: str, done: int, total: int | None, note: str) -> None:
        """Updates the bar of `stage` to `done` of `total`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, rate="", note="")
            self._begun[stage] = (time.monotonic(), done)  # a resumed stage starts above zero
        begun, before = self._begun[stage]
        per_second = (done - before) / max(time.monotonic() - begun, 1e-3)
        rate = f"{self._rate(per_second)}/s" if self._rated else ""
        self._progress.update(self._tasks[stage], completed=done, total=total, rate=rate, note=note)
        finished = total is not None and 0 < total <= done
        due = time.monotonic() - self._spoke > _LINE_EVERY_S or (finished and stage not in self._finished)
        if not self._console.is_terminal and due:
            self._spoke = time.monotonic()
            self._finished |= {stage} if finished else set()
            whole = f"/{self._amount(total)}" if total is not None else ""
            words = [f"{stage} {self._amount(done)}{whole}", *([rate] if rate else [])]
            if total is not None and not finished and per_second > 0:
                words.append(f"{timedelta(seconds=round((total - done) / per_second))} to go")
            self._console.print(" · ".join([*words, note] if note else words))

    def _amount(self, number: int) -> str:
        return decimal(number) if self._in_bytes else f"{number:,}"

    def _rate(self, per_second: float) -> str:
        # Rounded to a whole number, a slow stage, such as one that writes shards, would seem to stand still.
        return f"{per_second:.2g}" if not self._in_bytes and 0 < per_second < 10 else self._amount(round(per_second))

    def say(self, words: str) -> None:
        """Prints a sentence above the bars."""
        self._console.print(words)


def results_tables(results: Results) -> list[Table]:
    """Returns the results of an evaluation: one table per metric, or several if one would exceed the console width.

    Nothing is truncated: method names wrap between words, everything else stays on one line. If the console is too
    narrow for a single task, the table is wider than the console.
    """
    console = _console()

    def measured(texts: Iterable[str]) -> Measurement:
        return measure_renderables(console, console.options, [Text(text) for text in texts])

    tables = []
    for given in results.tables():
        features = measured(["features", *(row.features for row in given.rows)])
        model = measured(["model", *(row.model for row in given.rows)])
        widths = [
            measured([name, *(row.cells[number].text for row in given.rows)]).maximum
            for number, name in enumerate(given.columns)
        ]
        room = console.width - _BORDER - 2 * _BESIDE_A_CELL
        parts = _side_by_side(widths, room - features.minimum - model.minimum)
        left = room - max(sum(widths[column] + _BESIDE_A_CELL for column in part) for part in parts)
        of_features = min(features.maximum, max(features.minimum, left - model.maximum))
        of_model = min(model.maximum, max(model.minimum, left - of_features))
        wrapped = of_features < features.maximum or of_model < model.maximum
        for number, part in enumerate(parts, 1):
            title = given.title if len(parts) == 1 else f"{given.title}, {number} of {len(parts)}"
            table = Table(title=title, title_justify="left", show_lines=wrapped)
            table.add_column("features", width=of_features, overflow="fold")
            table.add_column("model", width=of_model, overflow="fold")
            for column in part:
                table.add_column(Text(given.columns[column]), justify="right", width=widths[column], overflow="fold")
            for row in given.rows:
                cells = [row.cells[column] for column in part]
                figures = [Text(cell.text, "bold" if cell.best else "") for cell in cells]
                table.add_row(Text(row.features), Text(row.model), *figures)
            table.width = _BORDER + sum(cast(int, column.width) + _BESIDE_A_CELL for column in table.columns)
            tables.append(table)
    return tables


def _side_by_side(widths: Sequence[int], room: int) -> list[range]:
    """Splits columns evenly over as few tables as possible, at least one column per table."""
    columns = range(len(widths))
    for count in range(1, len(columns) + 1):
        parts = [columns[len(columns) * n // count : len(columns) * (n + 1) // count] for n in range(count)]
        if all(sum(widths[column] + _BESIDE_A_CELL for column in part) <= room for part in parts):
            break
    return parts


def preparation_summary(manifest: Manifest, folder: str) -> Table:
    """Returns the ledger of a preparation as a table."""
    ledger = manifest.ledger
    table = Table(title=f"{folder}", title_justify="left", show_header=False, box=None)
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_row(f"{ledger.read:,}", "records read")
    table.add_row(f"{ledger.written:,}", f"written to {len(manifest.shards)} shards")
    table.add_row(f"{manifest.molecules('val'):,}", "of them for validation")
    for source, count in sorted(manifest.conformer_sources.items()):
        table.add_row(f"{count:,}", "without 3D" if source == "none" else f"with 3D from {source}")
    table.add_row(f"{ledger.duplicates:,}", "duplicates left out")
    if ledger.joined:
        table.add_row(f"{ledger.joined:,}", "PubChem3D records joined to their compound")
    if ledger.excluded:
        table.add_row(f"{ledger.excluded:,}", "excluded as asked")
    table.add_row(f"{ledger.rejected:,}", "rejected" + (", see rejects/" if ledger.rejected else ""))
    for reason, count in sorted(manifest.reject_reasons.items(), key=lambda item: -item[1]):
        table.add_row(f"{count:,}", f"  {reason}")
    return table


def changes_summary(changes: Changes) -> Table:
    """Returns a table of what a preparation changed in a folder that already held shards."""
    table = Table(title="changed", title_justify="left", show_header=False, box=None)
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_row(f"{changes.molecules:+,}", "molecules")
    for source, count in changes.conformer_sources.items():
        table.add_row(f"{count:+,}", f"  {'without 3D' if source == 'none' else f'with 3D from {source}'}")
    for name, count in changes.inputs.items():
        table.add_row(f"{count:+,}", Text(f"records from {name}"))
    table.add_row(f"{len(changes.same):,}", "shards stay, as the manifests say; `mmsa inspect --verify` reads them")
    for title, names in (
        ("rewritten", [now.name for _, now in changes.rewritten]),
        ("added", [shard.name for shard in changes.added]),
        ("removed", [shard.name for shard in changes.removed]),
    ):
        if names:
            shown = ", ".join(names[:_SHARDS_NAMED]) + (", ..." if len(names) > _SHARDS_NAMED else "")
            table.add_row(f"{len(names):,}", f"{title}: {shown}")
    for name, (was, now) in changes.options.items():
        table.add_row("", Text(f"{name} was {was!r}, is {now!r}"))
    return table


def download_summary(
    folder: str,
    *,
    fetched: int,
    received_bytes: int,
    present: int,
    present_bytes: int,
    retries: int,
    without_md5: int,
) -> Table:
    """Returns the outcome of a download as a table; the fields are those of `mmsa_shards.download.Outcome`."""
    table = Table(title=folder, title_justify="left", show_header=False, box=None)
    table.add_column(justify="right", style="bold")
    table.add_column()
    if fetched:
        table.add_row(f"{fetched:,}", f"files fetched, {decimal(received_bytes)}")
    else:
        table.add_row("0", "files fetched: everything was here already")
    if present and fetched:
        table.add_row(f"{present:,}", f"files were here already, {decimal(present_bytes)}")
    elif present:
        table.add_row(f"{present:,}", f"files here, {decimal(present_bytes)}")
    if retries:
        table.add_row(f"{retries:,}", "failures of the server or the connection, mended")
    if without_md5:
        table.add_row(f"{without_md5:,}", "of the fetched have no MD5 on the server, and were checked as gzip files")
    return table
