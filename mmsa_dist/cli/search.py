"""`mmsa search`: nearest neighbours among embedded molecules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from mmsa_dist.console import say


def search(
    folder: Annotated[Path, typer.Argument(help="Folder that `mmsa embed` wrote.", metavar="EMBEDDINGS")],
    queries: Annotated[list[str], typer.Argument(help="SMILES, or with --by-id ids of the folder.")],
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", "-m", help="The model that made the vectors; needed for SMILES."),
    ] = None,
    by_id: Annotated[bool, typer.Option("--by-id", help="The queries are ids of the folder.")] = False,
    k: Annotated[int, typer.Option("-k", help="Neighbours for each query.", min=1)] = 10,
) -> None:
    """Find the nearest neighbours of molecules among embedded ones, by cosine.

    Example: mmsa search runs/quickstart/embeddings "CC(=O)Oc1ccccc1C(=O)O" --model runs/quickstart/model -k 5
    """
    from mmsa_dist.embed.search import SearchIndex

    index = SearchIndex.open(folder)
    if by_id:
        answers = [index.by_id(query, k) for query in queries]
    elif model is None:
        raise ValueError("a SMILES is looked up with the model that made the vectors: pass --model, or --by-id")
    else:
        from mmsa_dist.embed import Embedder

        origin = index.origin
        embedder = Embedder.from_pretrained(
            model, view=origin.view, conformers=origin.conformers, pictures=origin.pictures
        )
        answers = index.by_smiles(embedder, queries, k)
    for query, neighbours in zip(queries, answers, strict=True):
        table = Table(title=query, title_justify="left")
        for name in ("similarity", "id", "smiles"):
            table.add_column(name, justify="right" if name == "similarity" else "left", overflow="fold")
        for neighbour in neighbours:
            table.add_row(f"{neighbour.similarity:.3f}", neighbour.id, neighbour.smiles)
        say(table)
