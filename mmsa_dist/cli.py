"""The command line: `mmsa prepare | inspect | pretrain | embed | search | evaluate | report | config`.

Heavy packages load inside the command that needs them, so that `--help` and a wrong argument answer at once.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Multi-modal molecular representation learning with structure awareness, from molecules to vectors.",
)

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)+=", re.ASCII)
_SETTINGS = "[section.key=value]..."

ConfigOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option("--config", "-c", help="YAML file with what differs from the defaults (see `mmsa config`)."),
]
Words = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(help="Settings such as train.steps=1000.", metavar=_SETTINGS, show_default=False),
]


def main(command: str | None = None) -> None:
    """Runs the command line, or only its `command`; says what a person got wrong in one sentence and exits with 2.

    With ``MMSA_DEBUG=1`` errors come with their traceback.
    """
    arguments = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    try:
        app(arguments)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command goes on from what is finished", highlight=False)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        if os.environ.get("MMSA_DEBUG"):
            raise
        Console(stderr=True, soft_wrap=True).print(f"mmsa: {error}", markup=False, highlight=False)
        sys.exit(2)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Separates settings ``section.key=value`` from other words."""
    settings = [word for word in words if _OVERRIDE.match(word)]
    return [word for word in words if word not in settings], settings


@app.command()
def prepare(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Files of molecules: .smi, .csv, .parquet, .sdf, each also .gz; settings may follow.",
            metavar=f"INPUT... {_SETTINGS}",
        ),
    ],
    out: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--out", "-o", help="Folder of the shards; left out: data.shards or <run.dir>/shards."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Turns molecules into shards, with every rejected record in a ledger.

    A second run of the same command goes on from the shards that are finished.

    Example: mmsa prepare molecules.smi.gz --out shards prepare.conformers=etkdg prepare.workers=8
    """
    from mmsa_dist.config.load import load_config
    from mmsa_dist.report.preparation import PreparationProgress, describe
    from mmsa_shards.build import prepare as prepare_shards

    inputs, settings = _split(words)
    if not inputs:
        raise ValueError("no input was named; say mmsa prepare FILE... --out FOLDER")
    resolved = load_config(config, settings)
    folder = out or resolved.shards_dir
    with PreparationProgress() as progress:
        manifest = prepare_shards(inputs, folder, resolved.prepare, progress=progress)
    Console().print(describe(manifest, folder))


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="Folder with manifest.json.", metavar="SHARDS")],
    sheet: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--sheet", help="PNG to draw; left out: contact_sheet.png beside the manifest."),
    ] = None,
    molecules: Annotated[int, typer.Option(help="Molecules on the sheet.", min=1, max=400)] = 24,
) -> None:
    """Prints what shards hold and draws a sheet of molecules as the model sees them."""
    from mmsa_dist.report.inspect import contact_sheet, inspect_shards, render_inspection

    Console().print(render_inspection(inspect_shards(folder)))
    path = sheet or Path(folder) / "contact_sheet.png"
    contact_sheet(folder, path, molecules)
    Console().print(f"drew {path}", highlight=False)


@app.command()
def pretrain(
    words: Words = None,
    config: ConfigOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest good checkpoint.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    """Pre-trains on prepared shards; alone, or on many processes under `deepspeed launch/pretrain.py`.

    Example: deepspeed --num_accelerators 8 launch/pretrain.py --config launch/configs/base.yaml run.dir=runs/one
    """
    from mmsa_dist.config.load import load_config

    strangers, settings = _split(words or [])
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not of the form section.key=value, such as train.steps=1000")
    resolved = load_config(config, settings)

    from mmsa_dist.train.loop import pretrain as run

    run(resolved, resume=resume)


@app.command()
def embed(
    words: Annotated[
        list[str],
        typer.Argument(
            help="A file of molecules or a folder of shards; settings may follow.",
            metavar=f"SOURCE {_SETTINGS}",
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Folder of an exported model, or a hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the Parquet parts.")],
    config: ConfigOption = None,
) -> None:
    """Writes a vector for every molecule: Parquet rows id, inchikey, smiles, embedding, ok, reason in input order.

    Example: mmsa embed library.smi --model runs/quickstart/model --out vectors embed.view=unified
    """
    from mmsa_dist.config.load import load_config

    sources, settings = _split(words)
    if len(sources) != 1:
        raise ValueError(
            f"one source is embedded at a time, not {len(sources)}; say mmsa embed FILE --model ... --out ..."
        )
    resolved = load_config(config, settings)

    from mmsa_dist.embed.embedder import Embedder
    from mmsa_dist.embed.export import export_embeddings
    from mmsa_dist.report.progress import bar

    embedder = Embedder.from_pretrained(model, view=resolved.embed.view, batch_size=resolved.embed.batch_size)
    with bar("embed") as progress:
        summary = export_embeddings(
            embedder, sources[0], out, dtype=resolved.embed.dtype, options=resolved.prepare, progress=progress
        )
    Console().print(str(summary), highlight=False)


@app.command("config")
def show_config(
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="A YAML file and settings, both optional.", metavar=f"[FILE] {_SETTINGS}"),
    ] = None,
) -> None:
    """Prints the whole resolved configuration; the defaults with their meaning stand in launch/configs/default.yaml."""
    from mmsa_dist.config.load import load_config, to_yaml

    files, settings = _split(words or [])
    if len(files) > 1:
        raise ValueError(f"one configuration file is read, not {len(files)}: {', '.join(files)}")
    sys.stdout.write(to_yaml(load_config(files[0] if files else None, settings)))
