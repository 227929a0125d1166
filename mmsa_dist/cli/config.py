"""`mmsa config`: the whole resolved configuration."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from mmsa_dist.cli.arguments import SETTINGS, split_settings
from mmsa_dist.config.load import load_config, to_yaml


def show_config(
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="A YAML file, then settings; both are optional.", metavar=f"[FILE] {SETTINGS}"),
    ] = None,
) -> None:
    """Print the whole resolved configuration; launch/configs/default.yaml documents each key."""
    files, settings = split_settings(words)
    if len(files) > 1:
        raise ValueError(f"one configuration file is read, not {len(files)}: {', '.join(files)}")
    sys.stdout.write(to_yaml(load_config(files[0] if files else None, settings)))
