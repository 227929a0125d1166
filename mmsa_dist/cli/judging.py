"""Arguments for tasks and output of results, shared by `mmsa evaluate` and `mmsa ablate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from mmsa_dist.cli.arguments import refuse_empty
from mmsa_dist.console import results_tables, say

if TYPE_CHECKING:
    from mmsa_dist.evaluate import Results, TaskData
    from mmsa_dist.evaluate.notes import Findings
    from mmsa_dist.evaluate.splits import Split

# Paths that may be left empty by mistake are words: a Path of an empty word is the working directory.
Out = Annotated[str, typer.Option("--out", "-o", help="Folder for results.{json,csv,md,png}, splits and jobs.")]
Protocol = Annotated[
    Literal["probe", "finetune"],
    typer.Option(
        help="probe = simple models on frozen vectors (seconds); finetune = all weights of the GIN (minutes)."
    ),
]
Tasks = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Comma-separated names, or classification, regression, all. Default: freesolv, or only --csv."),
]
Data = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Folder of MoleculeNet's CSV files. Default: download once; FreeSolv needs no download."),
]
Csv = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--csv", help="Your own CSV file; see --smiles-column, --label-columns and --metric."),
]
# None tells these options left out from ones that equal the default, which `load_tasks` refuses without --csv.
SmilesColumn = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Column of --csv with the SMILES. Default: smiles."),
]
LabelColumns = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Columns of --csv with the labels, comma-separated."),
]
Metric = Literal["roc_auc", "rmse", "mae"]
MetricOfCsv = Annotated[
    Optional[Metric],  # noqa: UP045
    typer.Option("--metric", help="Metric for --csv; roc_auc means classification. Default: roc_auc."),
]
SplitChoice = Annotated[
    str, typer.Option("--split", help="hu-scaffold, ogb-scaffold, random, or a path to a split file or folder.")
]
Seeds = Annotated[int, typer.Option(help="Number of seeds (0, 1, ...) for random splits, weights and forests.", min=1)]
Parallel = Annotated[int, typer.Option(help="Parallel jobs in Ray; 1 = without Ray, 0 = as many as fit.", min=0)]


def load_tasks(
    tasks: str | None,
    data: str | None,
    csv: Path | None,
    smiles_column: str | None,
    label_columns: str | None,
    metric: Metric | None,
) -> list[TaskData]:
    """Loads the tasks that the arguments name.

    Raises:
        ValueError: a task is unknown, a file or an argument is missing or invalid, an argument for `csv` is given
            without it, or `data` without a task.
    """
    refuse_empty("--data", data)
    of_csv = {"--smiles-column": smiles_column, "--label-columns": label_columns, "--metric": metric}
    given = ", ".join(option for option, value in of_csv.items() if value is not None)
    if given and csv is None:
        raise ValueError(f"without --csv there is no use for {given}: name your file with --csv, or leave {given} out")
    if data is not None and csv is not None and tasks is None:
        raise ValueError("without --tasks there is no use for --data: name tasks of MoleculeNet, or leave --data out")

    from mmsa_dist.evaluate import load_csv, load_task
    from mmsa_dist.evaluate.moleculenet import named_tasks

    if tasks is None:
        names = [] if csv else ["freesolv"]
    else:
        names = named_tasks(tasks)
    loaded = [load_task(name, data) for name in names]
    if csv is not None:
        columns = [name.strip() for name in (label_columns or "").split(",") if name.strip()]
        if not columns:
            raise ValueError("--csv needs --label-columns, such as --label-columns active")
        if len(set(columns)) < len(columns):
            raise ValueError(f"--label-columns={label_columns!r} names a column twice; name each once")
        if not csv.is_file():
            raise ValueError(f"--csv={csv} is not a file; check the path")
        smiles = "smiles" if smiles_column is None else smiles_column
        loaded.append(load_csv(csv, smiles_column=smiles, label_columns=columns, metric=metric or "roc_auc"))
    return loaded


def leak_check(
    model: str | Path, progress: Callable[[int, int], None], tell: Callable[[str], None]
) -> Callable[[Sequence[tuple[TaskData, Split]]], Findings]:
    """Returns the search for test molecules that `model` has seen, which tells what it finds before any job runs."""
    from mmsa_dist.evaluate.leaks import look_for_leaks

    def check(tasks: Sequence[tuple[TaskData, Split]]) -> Findings:
        found = look_for_leaks(model, tasks, progress=progress)
        for sentence in found.sentences:
            tell(sentence)
        return found

    return check


def show(results: Results, out: str) -> None:
    """Prints the tables and notes of `results`."""
    for table in results_tables(results):
        say(table)
    for note in results.notes():
        say(f"· {note}")
    say(f"wrote {out}")
