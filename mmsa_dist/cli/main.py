"""`mmsa`: its commands, and how an error is said."""

from __future__ import annotations

import os
import sys

import typer

from mmsa_dist.cli.ablate import ablate
from mmsa_dist.cli.config import show_config
from mmsa_dist.cli.download import pubchem
from mmsa_dist.cli.embed import embed
from mmsa_dist.cli.evaluate import evaluate
from mmsa_dist.cli.inspect import inspect
from mmsa_dist.cli.prepare import prepare
from mmsa_dist.cli.pretrain import pretrain
from mmsa_dist.cli.report import report
from mmsa_dist.cli.search import search
from mmsa_dist.console import fail

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Multi-modal molecular representation learning with structure awareness: from molecules to vectors.",
)
download = typer.Typer(no_args_is_help=True, help="Fetch the files that others publish, for `mmsa prepare`.")
download.command()(pubchem)
app.add_typer(download, name="download")
for command in (prepare, inspect, pretrain, embed, search, evaluate, ablate, report):
    app.command()(command)
app.command("config")(show_config)

_CTRL_C = 130  # the exit status that typer gives to Ctrl-C
_SIGTERM = 143  # `mmsa_shards.cluster.TERMINATED`, without importing Ray
_EXTRAS = {
    "ray": "prepare",
    "requests": "prepare",
    "tenacity": "prepare",
    "deepspeed": "train",
    "tensorboard": "train",
    "psutil": "train",
    "faiss": "train",
    "bokeh": "report",
    "umap": "report",
    "matplotlib": "report",
}


def main(command: str | None = None) -> None:
    """Runs the command line, or only its `command`; says in one sentence what a person got wrong and exits with 2.

    With ``MMSA_DEBUG=1`` errors come with their traceback.
    """
    arguments = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    try:
        app(arguments)
    except SystemExit as end:
        if end.code in (_CTRL_C, _SIGTERM):
            words = "interrupted; what is finished is kept, and the same command goes on from it"
            fail(f"{words} (pretrain and evaluate with --resume)", status=int(end.code))
        raise
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None or os.environ.get("MMSA_DEBUG"):
            raise
        fail(f"this command needs {error.name}, which is not installed; run pip install 'mmsa-dist[{extra}]'")
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("MMSA_DEBUG"):
            raise
        fail(str(error))
