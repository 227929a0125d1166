"""`mmsa`: its commands and error handling."""

from __future__ import annotations

import dis
import os
import sys
import traceback
from typing import Annotated

import typer

from mmsa_dist import __version__
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
from mmsa_dist.console import fail, say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Multi-modal molecular representation learning with structure awareness: from molecules to vectors.",
    epilog="With MMSA_DEBUG=1 in the environment, every error comes with its traceback.",
)
download = typer.Typer(no_args_is_help=True, help="Download public data sets for `mmsa prepare`.")
download.command()(pubchem)
app.add_typer(download, name="download")
for command in (prepare, inspect, pretrain, embed, search, evaluate, ablate, report):
    app.command()(command)
app.command("config")(show_config)

_OURS = ("mmsa_dist", "mmsa_shards", "mmsa_kernels")
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


def _show_version(is_asked: bool) -> None:
    if is_asked:
        say(f"mmsa-dist {__version__}")
        raise typer.Exit


@app.callback()
def _mmsa(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Takes the options that precede a command."""


def main(command: str | None = None) -> None:
    """Runs the command line, or only `command`.

    A user or system error prints one sentence and exits with status 2. Any other error is a bug: it prints its
    traceback and exits with status 1. With ``MMSA_DEBUG=1`` every error prints its traceback.
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
    except Exception as error:
        if os.environ.get("MMSA_DEBUG"):
            raise
        if isinstance(error, ValueError | OSError | FloatingPointError) and _is_raised_by_us(error):
            fail(str(error))
        if isinstance(error, OSError):
            fail(f"{error} (MMSA_DEBUG=1 shows where)")
        traceback.print_exc()
        fail(f"this is a bug of mmsa-dist {__version__}: please report it with the lines above", status=1)


def _is_raised_by_us(error: Exception) -> bool:
    """Returns whether our packages made the error, so that its text is meant for users.

    Errors of our own classes are, wherever they come out, such as those of a loader process that torch raises again. Of
    the others the innermost frame alone does not tell: it is also ours if a compiled function fails in numpy, torch or
    Python; so it must be at a `raise`.
    """
    if _is_our_module(type(error).__module__):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not _is_our_module(last.tb_frame.f_globals.get("__name__", "")):
        return False
    return last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _is_our_module(name: str) -> bool:
    return name.partition(".")[0] in _OURS
