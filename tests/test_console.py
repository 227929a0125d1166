"""What a person sees on the console: text as it was given, tables uncut, rates that say something."""

from __future__ import annotations

import pytest
from rich.table import Table

from mmsa_dist import console
from mmsa_dist.console import fail, preparation_progress, results_tables, say
from mmsa_dist.evaluate import Results
from tests.evaluate.test_results import score


@pytest.mark.parametrize("text", ["c1ccc2[nH]ccc2c1", "drug [/b] x", "a :smile: b", "[bold]out"])
def test_what_looks_like_markup_is_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(text, title=text)
    table.add_row(text)
    say(text)
    say(table)
    with pytest.raises(SystemExit):
        fail(text)
    printed = capsys.readouterr()
    assert printed.out.count(text) == 4
    assert printed.err == f"mmsa: {text}\n"


TASKS = ("bbbp", "tox21", "toxcast", "sider", "clintox", "muv", "hiv", "a_long_name_of_an_assay")
METHODS = [
    ("MMSA, pre-trained (structure)", "RBF kernel"),
    ("MMSA, no pre-training (structure)", "k-NN"),
    ("ECFP4", "Tanimoto kernel"),
    ("[b]none", "constant"),
]


def results(tasks: tuple[str, ...]) -> Results:
    """Two seeds; no two figures of a method are alike."""
    return Results(
        tuple(
            score(task, features, 0.3 + 0.12 * row + 0.013 * column + 0.01 * seed * (row + 1), seed, model=model)
            for row, (features, model) in enumerate(METHODS)
            for column, task in enumerate(tasks)
            for seed in (0, 1)
        )
    )


def printed_rows(text: str) -> list[list[str]]:
    """The rows of all tables in `text`, the lines of a wrapped cell joined by spaces."""
    rows: list[list[str]] = []
    wrapped = "├" in text
    begins = True
    for line in text.splitlines():
        if line[:1] not in "┃│":
            begins = True  # a rule, or a title
            continue
        cells = [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        if begins or not wrapped:
            rows.append(cells)
        else:
            rows[-1] = [" ".join(filter(None, both)) for both in zip(rows[-1], cells, strict=True)]
        begins = False
    return rows


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("tasks", [TASKS[:1], TASKS[:3], TASKS])
def test_of_results_nothing_is_cut(
    width: int, tasks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    given = results(tasks)
    for table in results_tables(given):
        say(table)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    rows = printed_rows(text)
    (wanted,) = given.tables()
    headings = [row for row in rows if row[:2] == ["features", "model"]]
    assert [name for row in headings for name in row[2:]] == list(wanted.columns)
    for row in wanted.rows:
        printed = [cells for cells in rows if cells[:2] == [row.features, row.model]]
        assert len(printed) == len(headings)
        assert [figure for cells in printed for figure in cells[2:]] == [cell.text for cell in row.cells]
    assert text.count(wanted.title) == len(headings)


def test_a_console_too_narrow_for_a_task_cuts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    for table in results_tables(results(TASKS[:1])):
        say(table)
    assert "30.5 ± 0.7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("done", "rate"), [(4, "0.067/s"), (71, "1.2/s"), (600, "10/s"), (72_000, "1,200/s"), (0, "0/s")]
)
def test_a_slow_stage_has_a_rate(
    done: int, rate: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with preparation_progress() as (report, _):
        report("write", 0, 100_000, 0)
        now = 60.0
        report("write", done, 100_000, 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"write {done:,}/100,000 · {rate}")
