"""`mmsa embed`: molecules to vectors in Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmsa_dist.cli.arguments import SETTINGS, ConfigFile, ModelFolder, refuse_empty, refuse_unused, split_settings
from mmsa_dist.config.load import is_set, load_config
from mmsa_dist.config.schema import Embed
from mmsa_dist.console import fail, say

if TYPE_CHECKING:
    from mmsa_dist.embed import ExportSummary

_USED = (
    *(f"embed.{name}" for name in Embed.model_fields if name != "reference_molecules"),
    *("prepare.smiles_column", "prepare.id_column", "prepare.allow_truncated"),
    "model.encoders",  # embed.view may name one of them, if a model has custom encoders
)
_OF_UNREADABLE = ("syntax", "empty")  # reasons of rows that do not look like molecules


def embed(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Files of molecules, folders or patterns of them, or one folder of shards; paths or URLs. "
            "- reads SMILES from standard input. Settings follow.",
            metavar=f"SOURCE... {SETTINGS}",
        ),
    ],
    model: ModelFolder,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder of the Parquet parts, a path or URL.")],
    format: Annotated[  # the option's name
        Literal["parquet", "npy"],
        typer.Option(
            help="npy: also write all vectors as one array in _vectors.npy, in row order; NaN for rows without one."
        ),
    ] = "parquet",
    parallel: Annotated[
        int,
        typer.Option(
            help="Parts embedded in parallel in Ray, each on a GPU or a core; 1 = without Ray, 0 = as many as fit.",
            min=0,
        ),
    ] = 1,
    config: ConfigFile = None,
) -> None:
    """Write a vector for every molecule to Parquet: id, inchikey, smiles, embedding, ok, reason, in input order.

    Vectors are of the view that the model was exported with, unless embed.view is set. embed.inchikeys=true adds
    InChIKeys of SMILES; shards already have them.

    Examples: mmsa embed library.smi --model runs/quickstart/model --out vectors embed.view=unified;
    zcat *.smi.gz | mmsa embed - --model runs/quickstart/model --out vectors --format npy --parallel 0
    """
    sources, settings = split_settings(words)
    if not sources:
        raise ValueError("no source was named; say mmsa embed FILE --model FOLDER --out FOLDER")
    refuse_empty("--out", out)
    refuse_empty("--model", model)
    resolved = load_config(config, settings)
    refuse_unused(settings, _USED, "mmsa embed", "standardization and the largest molecule are those of the model")

    from mmsa_dist.console import row_progress
    from mmsa_dist.embed import Embedder, export_embeddings

    options = resolved.embed
    embedder = Embedder.from_pretrained(
        model,
        view=options.view if is_set("embed.view", config, settings) else None,  # None: the model's own
        conformers=options.conformers,
        pictures=options.pictures,
        batch_size=options.batch_size,
        readers=options.readers,
        standardize=options.standardize,
        inchikeys=options.inchikeys,
    )
    with row_progress("embed") as progress:
        summary = export_embeddings(
            embedder,
            sources[0] if len(sources) == 1 else sources,
            out,
            dtype=options.dtype,
            format=format,
            parallel=parallel,
            options=resolved.prepare,
            progress=progress,
        )
    say(f"{summary.ok:,} of {summary.rows:,} rows have a vector ({summary.origin.width} numbers) → {summary.folder}")
    for reason, count in summary.reasons.items():
        say(f"  {count:,} without: {reason}")
    if summary.rows and not summary.ok:
        fail(f"no row has a vector: {_why_none(summary)}", status=1)


def _why_none(summary: ExportSummary) -> str:
    """Returns the most frequent reason why no row has a vector, preferring those other than unreadable input."""
    reason = next((reason for reason in summary.reasons if reason not in _OF_UNREADABLE), None)
    if reason is None:
        return "does the input hold what its name says? `-` reads lines of SMILES and ids"
    return summary.messages.get(reason, reason)
