"""`mmsa embed`: molecules to vectors in Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmsa_dist.cli.arguments import SETTINGS, ConfigFile, ModelFolder, split_settings
from mmsa_dist.config.load import load_config
from mmsa_dist.console import say


def embed(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Files of molecules or one folder of shards, then settings.", metavar=f"SOURCE... {SETTINGS}"
        ),
    ],
    model: ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the Parquet parts.")],
    config: ConfigFile = None,
) -> None:
    """Write a vector for every molecule to Parquet: id, inchikey, smiles, embedding, ok, reason, in input order.

    Example: mmsa embed library.smi --model runs/quickstart/model --out vectors embed.view=unified
    """
    sources, settings = split_settings(words)
    if not sources:
        raise ValueError("no source was named; say mmsa embed FILE --model FOLDER --out FOLDER")
    resolved = load_config(config, settings)

    from mmsa_dist.console import row_progress
    from mmsa_dist.embed import Embedder, export_embeddings

    options = resolved.embed
    embedder = Embedder.from_pretrained(
        model, view=options.view, conformers=options.conformers, batch_size=options.batch_size
    )
    with row_progress("embed") as progress:
        summary = export_embeddings(
            embedder,
            sources[0] if len(sources) == 1 else sources,
            out,
            dtype=options.dtype,
            options=resolved.prepare,
            progress=progress,
        )
    say(f"{summary.ok:,} of {summary.rows:,} rows have a vector ({summary.origin.width} numbers) → {summary.folder}")
    for reason, count in summary.reasons.items():
        say(f"  {count:,} without: {reason}")
