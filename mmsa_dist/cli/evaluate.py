"""`mmsa evaluate`: a model judged on labelled molecules."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Optional

import typer

from mmsa_dist.cli.arguments import SETTINGS, ConfigFile, split_settings
from mmsa_dist.cli.judging import (
    Csv,
    Data,
    LabelColumns,
    MetricOfCsv,
    Out,
    Parallel,
    Protocol,
    Seeds,
    SmilesColumn,
    SplitChoice,
    Tasks,
    load_tasks,
    show,
)
from mmsa_dist.config.load import load_config
from mmsa_dist.console import evaluation_progress


def evaluate(
    out: Out,
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Settings such as finetune.epochs=30.", metavar=SETTINGS, show_default=False),
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint", "--model", "-m", help="Exported model (<run.dir>/model), hub id, or none: no pre-training."
        ),
    ] = "none",
    protocol: Protocol = "probe",
    tasks: Tasks = None,
    data: Data = None,
    csv: Csv = None,
    smiles_column: SmilesColumn = "smiles",
    label_columns: LabelColumns = "",
    metric: MetricOfCsv = "roc_auc",
    split: SplitChoice = "hu-scaffold",
    seeds: Seeds = 3,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the jobs that are done in --out.")] = False,
    parallel: Parallel = 1,
    config: ConfigFile = None,
) -> None:
    """Judge a model on labelled molecules, beside no pre-training, ECFP4 and the mean, by the same code.

    Example: mmsa evaluate --checkpoint runs/base/model --protocol finetune --tasks bbbp,sider --data moleculenet
    --seeds 10 --parallel 0 --out evaluation
    """
    strangers, settings = split_settings(words)
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not of the form section.key=value, such as finetune.epochs=30")
    resolved = load_config(config, settings)

    from mmsa_dist.embed.pretrained import PretrainedModel
    from mmsa_dist.evaluate import evaluate as judge
    from mmsa_dist.evaluate.leaks import leak_warnings
    from mmsa_dist.evaluate.protocols import methods_of

    loaded = load_tasks(tasks, data, csv, smiles_column, label_columns, metric)
    model = None if checkpoint == "none" else PretrainedModel.load(checkpoint)
    with evaluation_progress() as (progress, looked):
        check = partial(leak_warnings, checkpoint, progress=looked) if model else None
        results = judge(
            methods_of(protocol, {"pre-trained": model} if model else {}, resolved),
            loaded,
            out=out,
            split=split,
            seeds=range(seeds),
            resume=resume,
            parallel=parallel,
            report=progress,
            check=check,
            about={"protocol": protocol, "models": {"pre-trained": model.digest} if model else {}},
        )
    show(results, out)
