"""`mmsa inspect`: what shards hold, whether they are intact, and what changed."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from mmsa_dist.console import fail, say


def inspect(
    folder: Annotated[str, typer.Argument(help="Folder with manifest.json.", metavar="SHARDS")],
    sheet: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--sheet", help="PNG to draw; default: contact_sheet.png beside the manifest."),
    ] = None,
    molecules: Annotated[int, typer.Option(help="Molecules on the sheet.", min=1, max=400)] = 24,
    verify: Annotated[
        bool, typer.Option("--verify", help="Instead, read everything and list what is broken (exit 1).")
    ] = False,
    since: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--since", help="Instead, print what changed since a manifest: a file, or a name in manifests/."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; no sheet unless --sheet names one.")] = False,
) -> None:
    """Print what shards hold and draw a sheet of molecules as the model sees them, or verify or compare shards.

    Example: mmsa inspect shards --verify
    """
    if verify:
        _verify(folder, as_json)
        return
    if since is not None:
        _compare(folder, since, as_json)
        return
    from mmsa_dist.report import contact_sheet, inspect_shards, render_inspection

    statistics = inspect_shards(folder)
    if as_json:
        sys.stdout.write(json.dumps(statistics.to_json(), indent=2, ensure_ascii=False) + "\n")
    else:
        say(render_inspection(statistics))
    if sheet is None and (as_json or "://" in folder):
        return
    path = sheet or Path(folder) / "contact_sheet.png"
    try:
        contact_sheet(folder, path, molecules)
    except OSError as error:
        raise ValueError(f"cannot draw {path} ({error.strerror}): name another file with --sheet") from error
    if not as_json:
        say(f"drew {path}")


def _compare(folder: str, since: str, as_json: bool) -> None:
    from mmsa_dist.console import changes_summary
    from mmsa_shards.changes import changes_between
    from mmsa_shards.folder import Folder
    from mmsa_shards.manifest import Manifest

    now, earlier = Manifest.load(folder), since
    if not since.endswith(".json"):
        kept = f"{folder.rstrip('/')}/manifests"
        names = [name.removesuffix(".json") for name in Folder(kept).names()]
        if since not in names:
            mend = (
                f"name one of {', '.join(names)}"
                if names
                else "manifests are kept there only once inputs have been added"
            )
            raise ValueError(f"no {since}.json in {kept}: {mend}, or name a file")
        earlier = f"{kept}/{since}.json"
    changes = changes_between(Manifest.load_file(earlier), now)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(changes), indent=2, ensure_ascii=False) + "\n")
    else:
        say(changes_summary(changes))


def _verify(folder: str, as_json: bool) -> None:
    from mmsa_dist.console import row_progress
    from mmsa_shards.verify import verify_folder

    with row_progress("verify") as progress:
        found = verify_folder(folder, progress=progress)
    faults = (*found.faults, *found.job_faults)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False) + "\n")
    else:
        for sentence in (*faults, *([found.unchecked] if found.unchecked else [])):
            say(sentence)
        if not faults:
            say(f"verified {found.shards:,} shards, {found.molecules:,} molecules, {found.bytes:,} bytes")
    if faults:
        fail(f"{folder} is broken in {len(faults)} place{'s' if len(faults) > 1 else ''}", status=1)
