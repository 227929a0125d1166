"""`mmsa prepare`: molecules to shards."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Optional

import typer

from mmsa_dist.cli.arguments import SETTINGS, ConfigFile, refuse_empty, split_settings
from mmsa_dist.config.load import load_config
from mmsa_dist.console import say


def prepare(
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Files of molecules (.smi, .csv, .parquet, .sdf, each also .gz), folders of them, patterns with *, "
            "or URLs (https://; s3:// and gs:// with mmsa-dist\\[cloud]); then settings.",
            metavar=f"INPUT... {SETTINGS}",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--out", "-o", help="Folder or URL of the shards; default: data.shards, or <run.dir>/shards."),
    ] = None,
    config: ConfigFile = None,
    exclude: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="File, folder or pattern of molecules that must not enter, such as downstream test sets; matched by "
            "skeleton. May be given more than once; adds to prepare.exclude.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Accept truncated or damaged files and read what is left of them.")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="Rebuild broken files of --out from the inputs that it was prepared from.")
    ] = False,
) -> None:
    """Turn molecules into shards, and list every rejected record in a ledger.

    Running the same command again continues from what is finished. Other inputs with the same --out are added: only
    the shards that their molecules belong to are rewritten.

    Example: mmsa prepare molecules.smi.gz --out shards --exclude moleculenet prepare.workers=8
    """
    refuse_empty("--out", out)
    inputs, settings = split_settings(words)
    if not inputs and not mend:
        raise ValueError("no input was named; run mmsa prepare FILE... --out FOLDER")
    if inputs and mend:
        raise ValueError("--repair takes no inputs, as the folder records its own; leave --repair out to add inputs")
    if exclude and mend:
        raise ValueError("--repair excludes what the preparation of the folder excluded; leave --exclude out")
    resolved = load_config(config, [*settings, *(["prepare.allow_truncated=true"] if allow_truncated else [])])
    options = replace(resolved.prepare, exclude=(*resolved.prepare.exclude, *(exclude or [])))

    from mmsa_dist.console import changes_summary, preparation_progress, preparation_summary
    from mmsa_shards.changes import changes_between
    from mmsa_shards.prepare import prepare as prepare_shards
    from mmsa_shards.repair import repair
    from mmsa_shards.workplace import held_manifest

    folder = out or resolved.shards_dir
    if mend:
        with preparation_progress() as (progress, tell):
            made = repair(folder, options, progress=progress, say=tell)
        say(f"rebuilt: {', '.join(made)}" if made else "every file matches the manifest")
        return
    before = held_manifest(folder)
    with preparation_progress() as (progress, tell):
        manifest = prepare_shards(inputs, folder, options, progress=progress, say=tell)
    say(preparation_summary(manifest, folder))
    if before is not None:
        say(changes_summary(changes_between(before, manifest)))
