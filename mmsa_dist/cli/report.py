"""`mmsa report`: one HTML page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmsa_dist.console import say


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
) -> None:
    """Write one HTML page about a run, at any time during it: <RUN>/report.html."""
    from mmsa_dist.report import write_report

    with Console(stderr=True).status("writing the report"):
        path = write_report(run)
    say(f"wrote {path}")
