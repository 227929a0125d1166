"""`mmsa evaluate`: a model judged on labelled molecules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from rich.console import Console
from rich.table import Table

from mmsa_dist.cli.arguments import ModelFolder
from mmsa_dist.console import say


def evaluate(
    model: ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results.{json,csv,md} and the splits.")],
    tasks: Annotated[str, typer.Option(help="Names with commas, such as bbbp,esol.")] = "freesolv",
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of MoleculeNet's CSV files; FreeSolv needs none."),
    ] = None,
    split: Annotated[Literal["hu-scaffold", "ogb-scaffold", "random"], typer.Option(help="Named split.")] = (
        "hu-scaffold"
    ),
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... of random splits and forests.", min=1)] = 3,
) -> None:
    """Probe frozen vectors on labelled molecules, beside ECFP4 and the mean, by the same code.

    Example: mmsa evaluate --model runs/quickstart/model --tasks bbbp,esol --data moleculenet --out evaluation
    """
    from mmsa_dist.embed import Embedder
    from mmsa_dist.evaluate import load_task, run_probe

    console = Console(stderr=True)
    loaded = [load_task(name.strip(), data) for name in tasks.split(",")]
    embedder = Embedder.from_pretrained(model)
    with console.status("evaluating") as status:
        results = run_probe(embedder, loaded, split=split, seeds=range(seeds), progress=status.update)
    results.write(out)
    table = Table()
    for name in ("task", "split", "metric", "features", "model", "test", "runs"):
        table.add_column(name, justify="right" if name in {"test", "runs"} else "left")
    for line in results.summaries():
        spread = f" ± {line.spread:.3f}" if line.spread is not None else ""
        row: list[Any] = [line.task, line.split, line.metric, line.features, line.model]
        table.add_row(*row, f"{line.mean:.3f}{spread}", str(len(line.values)), style="bold" if line.best else "")
    say(table)
    say(f"wrote {out}")
