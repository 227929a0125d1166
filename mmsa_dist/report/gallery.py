"""Search results as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from mmsa_dist import __version__
from mmsa_dist.embed.search import Neighbour
from mmsa_dist.report.drawing import structure_svg
from mmsa_dist.report.style import FONT
from mmsa_dist.report.templates import environment
from mmsa_dist.runtime.files import write_text_atomically


def write_gallery(
    answers: Mapping[str, Sequence[Neighbour]],
    path: Path,
    *,
    title: str,
    facts: Mapping[str, object],
    drawn: Mapping[str, str],
) -> None:
    """Writes search results as an HTML page.

    Args:
        answers: neighbours by query, nearest first.
        path: of the page; an existing file is replaced.
        title: of the page.
        facts: shown below the title.
        drawn: SMILES of the queries to draw, by query.
    """
    shown = [
        {
            "query": query,
            "svg": Markup(structure_svg(drawn[query])) if query in drawn else None,
            "hits": [
                {
                    "id": hit.id,
                    "smiles": hit.smiles,
                    "svg": Markup(structure_svg(hit.smiles)),
                    "note": f"cosine {hit.similarity:.3f}",
                }
                for hit in hits
            ],
        }
        for query, hits in answers.items()
    ]
    page = environment().get_template("gallery.html")
    write_text_atomically(
        path, page.render(answers=shown, title=title, facts=facts, font=Markup(FONT), version=__version__)
    )
