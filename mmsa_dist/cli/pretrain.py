"""`mmsa pretrain`: from shards to a model."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from mmsa_dist.cli.arguments import SETTINGS, ConfigFile, only_settings
from mmsa_dist.config.load import load_config


def pretrain(
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Settings such as train.steps=1000.", metavar=SETTINGS, show_default=False),
    ] = None,
    config: ConfigFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the latest valid checkpoint in run.dir.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all shards first; otherwise only their sizes are checked.")
    ] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    """Pre-train on prepared shards, in one process or in many under deepspeed.

    Example: deepspeed --num_accelerators 8 launch/pretrain.py --config launch/configs/base.yaml run.dir=runs/one
    """
    settings = only_settings(words)
    resolved = load_config(config, settings)

    from mmsa_dist.train.loop import pretrain as train

    train(resolved, resume=resume, verify=verify)
