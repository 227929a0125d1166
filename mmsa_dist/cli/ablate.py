"""`mmsa ablate`: measures the contribution of each idea."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mmsa_dist.cli import judging
from mmsa_dist.cli.arguments import SETTINGS, ConfigFile, only_settings, refuse_empty, refuse_unused
from mmsa_dist.config.load import load_config
from mmsa_dist.console import evaluation_progress, say


def ablate(
    out: judging.Out,
    arms: Annotated[Path, typer.Option(help="YAML file with the arms, such as launch/ablation.yaml.")],
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Settings that all arms share, including data.shards=FOLDER.",
            metavar=SETTINGS,
            show_default=False,
        ),
    ] = None,
    protocol: judging.Protocol = "finetune",
    tasks: judging.Tasks = None,
    data: judging.Data = None,
    csv: judging.Csv = None,
    smiles_column: judging.SmilesColumn = None,
    label_columns: judging.LabelColumns = None,
    metric: judging.MetricOfCsv = None,
    split: judging.SplitChoice = "hu-scaffold",
    seeds: judging.Seeds = 3,
    ranks: Annotated[int, typer.Option(help="Processes per pre-training, started by DeepSpeed.", min=1)] = 1,
    parallel: judging.Parallel = 1,
    config: ConfigFile = None,
) -> None:
    """Pre-train one model per arm on the same molecules with the same budget, and evaluate all in one table.

    To continue after a stop, repeat the command: it keeps finished arms and jobs and resumes from checkpoints.

    Example: mmsa ablate --arms launch/ablation.yaml data.shards=shards train.steps=10000 --tasks bbbp,sider
    --data moleculenet --out runs/ablation
    """
    refuse_empty("--out", out)
    refuse_empty("--split", split, "a split")
    settings = only_settings(words)
    shared = load_config(config, settings)

    from mmsa_dist.embed.pretrained import Inference
    from mmsa_dist.evaluate import run_evaluation
    from mmsa_dist.evaluate.ablation import budget, described, pretrain_arms, read_arms, used_by_ablation
    from mmsa_dist.evaluate.protocols import methods_of, untrained
    from mmsa_dist.evaluate.provenance import judged
    from mmsa_dist.evaluate.run import all_jobs

    why = "each arm has its folder in --out and reads its molecules from the shards"
    refuse_unused(settings, used_by_ablation(protocol), f"mmsa ablate --protocol {protocol}", why)
    loaded = judging.load_tasks(tasks, data, csv, smiles_column, label_columns, metric)
    trained = read_arms(arms, Path(out), config, settings)
    budget(trained)
    embed = {arm.name: arm.config.embed for arm in trained}
    # What cannot be evaluated must fail before days of pre-training.
    drafts = {arm.name: untrained(Inference.of(arm.config), seed=0) for arm in trained}
    all_jobs(methods_of(protocol, drafts, shared, embed), loaded, split, range(seeds))
    models = pretrain_arms(trained, ranks, say)
    first = trained[0].folder.model  # all arms were trained on the same molecules
    with evaluation_progress() as (progress, looked, tell):
        results = run_evaluation(
            methods_of(protocol, models, shared, embed),
            loaded,
            out=out,
            split=split,
            seeds=range(seeds),
            resume=True,
            parallel=parallel,
            report=progress,
            check=judging.leak_check(first, looked, tell),
            about=judged(protocol, models, shared) | described(trained),
        )
    judging.show(results, out)
