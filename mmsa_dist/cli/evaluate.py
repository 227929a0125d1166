"""`mmsa evaluate`: a model judged on labelled molecules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from mmsa_dist.cli.arguments import SETTINGS, ConfigFile, split_settings
from mmsa_dist.config.load import load_config
from mmsa_dist.console import job_progress, results_tables, say

if TYPE_CHECKING:
    from mmsa_dist.evaluate import TaskData


def evaluate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results.{json,csv,md,png}, splits and jobs.")],
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Settings such as finetune.epochs=30.", metavar=SETTINGS, show_default=False),
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            "--model",
            "-m",
            help="Exported model (<run.dir>/model), hub id, or none: no pre-training.",
        ),
    ] = "none",
    protocol: Annotated[
        Literal["probe", "finetune"],
        typer.Option(help="probe = frozen vectors under simple models (seconds); finetune = all of the GIN (minutes)."),
    ] = "probe",
    tasks: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Names with commas, or classification, regression, all. Left out: freesolv, or the --csv."),
    ] = None,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of MoleculeNet's CSV files; left out, they are fetched once. FreeSolv is at hand."),
    ] = None,
    csv: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--csv", help="A file of your own; with --smiles-column, --label-columns and --metric."),
    ] = None,
    smiles_column: Annotated[str, typer.Option(help="Of --csv.")] = "smiles",
    label_columns: Annotated[str, typer.Option(help="Of --csv, with commas.")] = "",
    metric: Annotated[
        Literal["roc_auc", "rmse", "mae"], typer.Option(help="Of --csv; roc_auc makes it a classification.")
    ] = "roc_auc",
    split: Annotated[
        str,
        typer.Option(help="hu-scaffold, ogb-scaffold, random, or a file or folder of splits."),
    ] = "hu-scaffold",
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... of random splits, weights and forests.", min=1)] = 3,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the jobs that are done in --out.")] = False,
    parallel: Annotated[
        int, typer.Option(help="Jobs side by side in Ray; 1 = without Ray, 0 = as many as it has room for.", min=0)
    ] = 1,
    config: ConfigFile = None,
) -> None:
    """Judge a model on labelled molecules, beside no pre-training, ECFP4 and the mean, by the same code.

    Example: mmsa evaluate --checkpoint runs/base/model --protocol finetune --tasks bbbp,sider --data moleculenet
    --seeds 10 --parallel 0 --out evaluation
    """
    strangers, settings = split_settings(words)
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not of the form section.key=value, such as finetune.epochs=30")
    if checkpoint == "none" and protocol == "probe" and not csv and not tasks:
        raise ValueError("there is nothing to judge: say --checkpoint <run.dir>/model, or --tasks for the baselines")
    resolved = load_config(config, settings)

    from mmsa_dist.embed.pretrained import PretrainedModel
    from mmsa_dist.evaluate import evaluate as judge
    from mmsa_dist.evaluate.plot import plot_results
    from mmsa_dist.evaluate.protocols import methods_of

    loaded = _load(tasks, data, csv, smiles_column, label_columns, metric)
    model = None if checkpoint == "none" else PretrainedModel.load(checkpoint)
    with job_progress() as progress:
        results = judge(
            methods_of(protocol, model, resolved),
            loaded,
            out=out,
            split=split,
            seeds=range(seeds),
            resume=resume,
            parallel=parallel,
            report=progress,
            about={"protocol": protocol, "model_digest": model.digest if model else None},
        )
    plot_results(results, out / "results.png")
    for table in results_tables(results):
        say(table)
    for note in results.notes():
        say(f"· {note}")
    say(f"wrote {out}")


def _load(
    tasks: str | None,
    data: Path | None,
    csv: Path | None,
    smiles_column: str,
    label_columns: str,
    metric: Literal["roc_auc", "rmse", "mae"],
) -> list[TaskData]:
    from mmsa_dist.evaluate import TASKS, load_csv, load_task

    groups = {
        "classification": [name for name, task in TASKS.items() if task.kind == "classification"],
        "regression": [name for name, task in TASKS.items() if task.kind == "regression"],
        "all": list(TASKS),
    }
    words = [word.strip() for word in (tasks or ("" if csv else "freesolv")).split(",") if word.strip()]
    names = dict.fromkeys(name for word in words for name in groups.get(word, [word]))
    loaded = [load_task(name, data) for name in names]
    if csv is not None:
        columns = [name.strip() for name in label_columns.split(",") if name.strip()]
        if not columns:
            raise ValueError("--csv needs --label-columns, such as --label-columns active")
        loaded.append(load_csv(csv, smiles_column=smiles_column, label_columns=columns, metric=metric))
    return loaded
