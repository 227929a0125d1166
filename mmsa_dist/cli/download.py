"""`mmsa download`: files that others publish."""

from __future__ import annotations

import shlex
from typing import Annotated, Optional

import typer
from rich.text import Text

from mmsa_dist.cli.arguments import refuse_empty
from mmsa_dist.console import say


def pubchem(
    first: Annotated[int, typer.Option("--from", help="Smallest compound id (CID), from 1.")],
    last: Annotated[int, typer.Option("--to", help="Largest compound id, inclusive.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder, laid out as on the server.")],
    compounds: Annotated[
        bool, typer.Option("--2d/--no-2d", help="SDF, 500,000 CIDs a file, about 300 MB each.")
    ] = True,
    conformers: Annotated[bool, typer.Option("--3d", help="Also PubChem3D's conformers, 25,000 CIDs a file.")] = False,
    smiles: Annotated[bool, typer.Option("--smiles", help="Also CID-SMILES.gz, which holds every CID.")] = False,
    base_url: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="A mirror: http(s)://, file://, s3:// (with mmsa-dist\\[cloud]), ...; default: PubChem's own server."
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(help="Files at a time; be polite.", min=1, max=16)] = 4,
) -> None:
    """Fetch the files of PubChem that hold a range of compounds.

    Files with 2D coordinates have about 300 MB each. A file gets its final name once its checksum is verified:
    PubChem's, or, where it has none, as for 3D, the one inside gzip. You can stop at any time: the same command
    continues with what is missing, and fetches again only what has changed on the server.

    Example: mmsa download pubchem --from 1 --to 5000000 --3d --out pubchem
    """
    refuse_empty("--out", out)

    from mmsa_dist.console import download_progress, download_summary
    from mmsa_shards.pubchem import BASE_URL, download_pubchem

    with download_progress() as (progress, tell):
        done = download_pubchem(
            out,
            first,
            last,
            compounds=compounds,
            conformers=conformers,
            smiles=smiles,
            base_url=base_url or BASE_URL,
            parallel=parallel,
            progress=progress,
            say=tell,
        )
    say(download_summary(out, **vars(done.outcome)))
    inputs = " ".join(f"{shlex.quote(out)}/{pattern}" for pattern in done.inputs)
    say(Text(f"next: mmsa prepare {inputs} --out shards"))  # not as markup: a path may contain brackets
