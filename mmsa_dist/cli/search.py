"""`mmsa search`: nearest neighbours among embedded molecules."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table

from mmsa_dist.cli.arguments import refuse_empty, split_settings
from mmsa_dist.console import say

if TYPE_CHECKING:
    from mmsa_dist.embed.search import Neighbour, SearchIndex


def search(
    folder: Annotated[str, typer.Argument(help="Folder that `mmsa embed` wrote, a path or URL.", metavar="EMBEDDINGS")],
    queries: Annotated[list[str], typer.Argument(help="SMILES, or with --by-id ids of the folder.")],
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", "-m", help="Model that made the vectors; required for SMILES."),
    ] = None,
    by_id: Annotated[bool, typer.Option("--by-id", help="The queries are ids of the folder.")] = False,
    k: Annotated[int, typer.Option("-k", help="Neighbours for each query.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--html", help="Write an HTML page with structures that needs no network."),
    ] = None,
) -> None:
    """Find the nearest neighbours of molecules among embedded ones, by cosine.

    Up to 131,072 vectors are searched exactly; for more, the first search builds an index and stores it in the folder.
    The index finds 98 % of the 10 nearest. More neighbours (-k) are sought among all vectors.

    Example: mmsa search runs/quickstart/embeddings "CC(=O)Oc1ccccc1C(=O)O" --model runs/quickstart/model -k 5
    """
    refuse_empty("--model", model)
    if settings := [] if by_id else split_settings(queries)[1]:
        raise ValueError(
            f"mmsa search takes no settings ({settings[0]}): molecules are embedded as those of the folder"
        )
    if html is not None and html.is_dir():
        raise ValueError(f"--html {html} is a folder; name a file in it, such as {html / 'neighbours.html'}")
    if html is not None and not html.parent.is_dir():
        raise ValueError(f"--html {html}: there is no folder {html.parent}; make it, or name another")

    from mmsa_dist.embed.search import SearchIndex

    index = SearchIndex.open(folder)
    answers = dict(zip(queries, _neighbours(index, queries, model, by_id, k), strict=True))
    if html is not None:
        _write_page(index, answers, html, folder, by_id)
    if as_json:
        plain = {query: [dataclasses.asdict(hit) for hit in hits] for query, hits in answers.items()}
        sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    elif html is not None:
        say(f"wrote {html}")
    else:
        for query, hits in answers.items():
            say(_table(query, hits))


def _neighbours(
    index: SearchIndex, queries: Sequence[str], model: str | None, by_id: bool, k: int
) -> list[list[Neighbour]]:
    if by_id:
        return [index.by_id(query, k) for query in queries]
    if model is None:
        raise ValueError("a SMILES is looked up with the model that made the vectors: pass --model, or --by-id")
    from mmsa_dist.embed import Embedder

    return index.by_smiles(Embedder.from_pretrained(model, **index.query_options), queries, k)


def _write_page(
    index: SearchIndex, answers: Mapping[str, Sequence[Neighbour]], path: Path, folder: str, by_id: bool
) -> None:
    from mmsa_dist.report.gallery import write_gallery
    from mmsa_shards.folder import Folder

    facts = {
        "molecules": f"{len(index):,}",
        "view": index.origin.view,
        "recall of the 10 nearest": f"{index.recall:.3f}",
    }
    drawn = {query: index.smiles_of(query) if by_id else query for query in answers}
    write_gallery(answers, path, title=Folder(folder).url.rpartition("/")[2], facts=facts, drawn=drawn)


def _table(query: str, hits: Sequence[Neighbour]) -> Table:
    table = Table(title=query, title_justify="left")
    for name in ("similarity", "id", "smiles"):
        table.add_column(name, justify="right" if name == "similarity" else "left", overflow="fold")
    for hit in hits:
        table.add_row(f"{hit.similarity:.3f}", hit.id, hit.smiles)
    return table
