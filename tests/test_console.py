"""What is printed stands there as it was given."""

from __future__ import annotations

import pytest
from rich.table import Table

from mmsa_dist.console import fail, say


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
