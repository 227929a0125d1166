"""`mmsa evaluate`: evaluates a model on labelled molecules."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from mmsa_dist.cli import judging
from mmsa_dist.cli.arguments import SETTINGS, ConfigFile, only_settings, refuse_empty, refuse_unused
from mmsa_dist.config.load import is_set, load_config
from mmsa_dist.console import evaluation_progress

_WHY_UNUSED = {
    "probe": "SMILES are used as given",
    "finetune": "only the GIN is tuned, with finetune.dropout and mean pooling over atoms",
}
"""Why a protocol ignores other settings."""


def evaluate(
    out: judging.Out,
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Settings such as finetune.epochs=30.", metavar=SETTINGS, show_default=False),
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint", "--model", "-m", help="Exported model (<run.dir>/model), hub id, or none (baselines only)."
        ),
    ] = "none",
    protocol: judging.Protocol = "probe",
    tasks: judging.Tasks = None,
    data: judging.Data = None,
    csv: judging.Csv = None,
    smiles_column: judging.SmilesColumn = None,
    label_columns: judging.LabelColumns = None,
    metric: judging.MetricOfCsv = None,
    split: judging.SplitChoice = "hu-scaffold",
    seeds: judging.Seeds = 3,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the finished jobs in --out.")] = False,
    parallel: judging.Parallel = 1,
    config: ConfigFile = None,
) -> None:
    """Evaluate a model on labelled molecules against no pre-training, ECFP4 and the mean, under identical code.

    Example: mmsa evaluate --checkpoint runs/base/model --protocol finetune --tasks bbbp,sider --data moleculenet
    --seeds 10 --parallel 0 --out evaluation
    """
    refuse_empty("--out", out)
    refuse_empty("--split", split, "a split")
    refuse_empty("--checkpoint", checkpoint)
    settings = only_settings(words, example="finetune.epochs=30")
    resolved = load_config(config, settings)
    bare = checkpoint == "none"

    from mmsa_dist.embed.pretrained import PretrainedModel
    from mmsa_dist.evaluate import run_evaluation
    from mmsa_dist.evaluate.protocols import methods_of
    from mmsa_dist.evaluate.provenance import judged, used_settings

    why = _WHY_UNUSED[protocol] if bare else f"{_WHY_UNUSED[protocol]}, and the network is that of --checkpoint"
    refuse_unused(settings, used_settings(protocol, bare=bare), f"mmsa evaluate --protocol {protocol}", why)
    loaded = judging.load_tasks(tasks, data, csv, smiles_column, label_columns, metric)
    model = None if bare else PretrainedModel.load(checkpoint)
    models = {"pre-trained": model} if model else {}
    if model and not is_set("embed.view", config, settings):  # as `mmsa embed`
        embed = resolved.embed.model_copy(update={"view": model.inference.view})
        resolved = resolved.model_copy(update={"embed": embed})
    with evaluation_progress() as (progress, looked, tell):
        results = run_evaluation(
            methods_of(protocol, models, resolved),
            loaded,
            out=out,
            split=split,
            seeds=range(seeds),
            resume=resume,
            parallel=parallel,
            report=progress,
            check=judging.leak_check(checkpoint, looked, tell) if model else None,
            about=judged(protocol, models, resolved, checkpoint),
        )
    judging.show(results, out)
