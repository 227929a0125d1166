"""What `mmsa evaluate` and `mmsa ablate` share: arguments that say on what is judged, and how results are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from mmsa_dist.console import results_tables, say

if TYPE_CHECKING:
    from mmsa_dist.evaluate import Results, TaskData

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of results.{json,csv,md,png}, splits and jobs.")]
Protocol = Annotated[
    Literal["probe", "finetune"],
    typer.Option(help="probe = frozen vectors under simple models (seconds); finetune = all of the GIN (minutes)."),
]
Tasks = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Names with commas, or classification, regression, all. Left out: freesolv, or the --csv."),
]
Data = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder of MoleculeNet's CSV files; left out, they are fetched once. FreeSolv is at hand."),
]
Csv = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--csv", help="A file of your own; with --smiles-column, --label-columns and --metric."),
]
SmilesColumn = Annotated[str, typer.Option(help="Of --csv.")]
LabelColumns = Annotated[str, typer.Option(help="Of --csv, with commas.")]
Metric = Literal["roc_auc", "rmse", "mae"]
MetricOfCsv = Annotated[Metric, typer.Option("--metric", help="Of --csv; roc_auc makes it a classification.")]
SplitChoice = Annotated[
    str, typer.Option("--split", help="hu-scaffold, ogb-scaffold, random, or the path of a file or folder of splits.")
]
Seeds = Annotated[int, typer.Option(help="Seeds 0, 1, ... of random splits, weights and forests.", min=1)]
Parallel = Annotated[
    int, typer.Option(help="Jobs side by side in Ray; 1 = without Ray, 0 = as many as it has room for.", min=0)
]


def load_tasks(
    tasks: str | None,
    data: Path | None,
    csv: Path | None,
    smiles_column: str,
    label_columns: str,
    metric: Metric,
) -> list[TaskData]:
    """Loads what the arguments name.

    Raises:
        ValueError: an unknown task, a file that is missing or not what it should be.
    """
    from mmsa_dist.evaluate import load_csv, load_task
    from mmsa_dist.evaluate.moleculenet import named_tasks

    if tasks is None:
        names = [] if csv else ["freesolv"]
    else:
        names = named_tasks(tasks)
    loaded = [load_task(name, data) for name in names]
    if csv is not None:
        columns = [name.strip() for name in label_columns.split(",") if name.strip()]
        if not columns:
            raise ValueError("--csv needs --label-columns, such as --label-columns active")
        if len(set(columns)) < len(columns):
            raise ValueError(f"--label-columns={label_columns!r} names a column twice; name each once")
        if not csv.is_file():
            raise ValueError(f"--csv={csv} is not a file; check the path")
        loaded.append(load_csv(csv, smiles_column=smiles_column, label_columns=columns, metric=metric))
    return loaded


def show(results: Results, out: Path) -> None:
    """Prints tables and notes."""
    for table in results_tables(results):
        say(table)
    for note in results.notes():
        say(f"· {note}")
    say(f"wrote {out}")
