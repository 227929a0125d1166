"""The command line: `mmsa download | prepare | inspect | pretrain | embed | search | evaluate | report | config`.

Heavy packages load inside the command that needs them, so that `--help` and a wrong argument answer at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmsa_dist.config.load import load_config, to_yaml

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Multi-modal molecular representation learning with structure awareness: from molecules to vectors.",
)

download = typer.Typer(no_args_is_help=True, help="Fetch the files that others publish, for `mmsa prepare`.")
app.add_typer(download, name="download")

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)+=", re.ASCII)
_SETTINGS = "[section.key=value]..."
_CTRL_C = 130  # the exit status that typer gives to Ctrl-C
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

# typer reads annotations when the program runs, where `X | None` is not understood in every form it needs.
ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--config", "-c", help="YAML file with what differs from the defaults; `mmsa config` shows all keys."),
]
ModelFolder = Annotated[
    str, typer.Option("--model", "-m", help="Folder of an exported model (<run.dir>/model), or a hub id.")
]


def main(command: str | None = None) -> None:
    """Runs the command line, or only its `command`; says in one sentence what a person got wrong and exits with 2.

    With ``MMSA_DEBUG=1`` errors come with their traceback.
    """
    arguments = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    try:
        app(arguments)
    except SystemExit as end:
        if end.code == _CTRL_C:
            _fail("interrupted; what is finished is kept, and the same command goes on from it", status=_CTRL_C)
        raise
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None or os.environ.get("MMSA_DEBUG"):
            raise
        _fail(f"this command needs {error.name}, which is not installed; run pip install 'mmsa-dist[{extra}]'")
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("MMSA_DEBUG"):
            raise
        _fail(str(error))


def _fail(words: str, status: int = 2) -> None:
    Console(stderr=True, soft_wrap=True).print(f"mmsa: {words}", markup=False, highlight=False)
    sys.exit(status)


def _say(words: object) -> None:
    Console(soft_wrap=True).print(words, highlight=False)


def _split(words: list[str] | None) -> tuple[list[str], list[str]]:
    """Separates settings ``section.key=value`` from other words."""
    words = words or []
    return (
        [word for word in words if not _OVERRIDE.match(word)],
        [word for word in words if _OVERRIDE.match(word)],
    )


@download.command()
def pubchem(
    first: Annotated[int, typer.Option("--from", help="Smallest compound id (CID), from 1.")],
    last: Annotated[int, typer.Option("--to", help="Largest compound id, itself included.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; the files lie in it as on the server.")],
    compounds: Annotated[
        bool, typer.Option("--2d/--no-2d", help="SDF, 500,000 CIDs a file, about 300 MB each.")
    ] = True,
    conformers: Annotated[bool, typer.Option("--3d", help="Also PubChem3D's conformers, 25,000 CIDs a file.")] = False,
    smiles: Annotated[bool, typer.Option("--smiles", help="Also CID-SMILES.gz, which holds every CID.")] = False,
    base_url: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A mirror: http(s)://, file://, s3://, ...; left out, PubChem's own server."),
    ] = None,
    parallel: Annotated[int, typer.Option(help="Files at a time; be polite.", min=1, max=16)] = 4,
) -> None:
    """Fetch the files of PubChem that hold a range of compounds.

    Files with 2D coordinates have about 300 MB each. A file takes its name once its checksum is right: that of
    PubChem, or where it has none, as for 3D, the one inside gzip. Stop it when you like: the same command goes on
    with what lacks, and fetches again only what has changed on the server.

    Example: mmsa download pubchem --from 1 --to 5000000 --3d --out pubchem
    """
    from mmsa_dist.console import download_progress, download_summary
    from mmsa_shards.pubchem import BASE_URL, download_pubchem

    with download_progress() as (progress, say):
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
            say=say,
        )
    _say(download_summary(str(out), **vars(done.outcome)))
    inputs = " ".join(f"{shlex.quote(str(out))}/{pattern}" for pattern in done.inputs)
    _say(Text(f"next: mmsa prepare {inputs} --out shards"))  # as it is: a path may hold brackets


@app.command()
def prepare(
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Files of molecules (.smi, .csv, .parquet, .sdf, each also .gz), folders of them, patterns with *, "
            "or URLs (s3://, gs://, https://); then settings.",
            metavar=f"INPUT... {_SETTINGS}",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--out", "-o", help="Folder or URL of the shards; left out: data.shards, or <run.dir>/shards."),
    ] = None,
    config: ConfigFile = None,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Take what there is of files that end too early or are damaged.")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="Make broken shards of --out again, from the inputs it was prepared from.")
    ] = False,
) -> None:
    """Turn molecules into shards, with every rejected record in a ledger.

    The same command again goes on from what is finished. Other inputs with the same --out are added: only the
    shards that their molecules belong to are written again.

    Example: mmsa prepare molecules.smi.gz --out shards prepare.conformers=etkdg prepare.workers=8
    """
    inputs, settings = _split(words)
    if not inputs and not mend:
        raise ValueError("no input was named; say mmsa prepare FILE... --out FOLDER")
    if inputs and mend:
        raise ValueError("--repair takes no inputs, the folder knows its own; to add some leave --repair out")
    resolved = load_config(config, [*settings, *(["prepare.allow_truncated=true"] if allow_truncated else [])])

    from mmsa_dist.console import changes_summary, preparation_progress, preparation_summary
    from mmsa_shards.changes import changes_between
    from mmsa_shards.prepare import prepare as prepare_shards
    from mmsa_shards.repair import repair
    from mmsa_shards.workplace import held_manifest

    folder = out or resolved.shards_dir
    if mend:
        with preparation_progress() as progress:
            made = repair(folder, resolved.prepare, progress=progress)
        _say(f"made again: {', '.join(made)}" if made else "every shard is what the manifest says")
        return
    before = held_manifest(folder)
    with preparation_progress() as progress:
        manifest = prepare_shards(inputs, folder, resolved.prepare, progress=progress)
    _say(preparation_summary(manifest, folder))
    if before is not None:
        _say(changes_summary(changes_between(before, manifest)))


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="Folder with manifest.json.", metavar="SHARDS")],
    sheet: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--sheet", help="PNG to draw; left out: contact_sheet.png beside the manifest."),
    ] = None,
    molecules: Annotated[int, typer.Option(help="Molecules on the sheet.", min=1, max=400)] = 24,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything instead and name all that is broken (exit 1).")
    ] = False,
    since: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--since", help="Print what changed since a manifest instead: a file, or a name in manifests/."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; no sheet unless --sheet names one.")] = False,
) -> None:
    """Print what shards hold, and draw a sheet of molecules as the model sees them; or verify or compare them.

    Example: mmsa inspect shards --verify
    """
    if verify:
        _verify(folder, as_json)
        return
    if since is not None:
        _compare(folder, since, as_json)
        return
    from mmsa_dist.report.inspect import contact_sheet, inspect_shards, render_inspection

    statistics = inspect_shards(folder)
    if as_json:
        sys.stdout.write(json.dumps(statistics.to_json(), indent=2, ensure_ascii=False) + "\n")
    else:
        _say(render_inspection(statistics))
    if sheet is None and (as_json or "://" in folder):
        return
    path = sheet or Path(folder) / "contact_sheet.png"
    contact_sheet(folder, path, molecules)
    if not as_json:
        _say(f"drew {path}")


def _compare(folder: str, since: str, as_json: bool) -> None:
    from mmsa_dist.console import changes_summary
    from mmsa_shards.changes import changes_between
    from mmsa_shards.manifest import Manifest

    earlier = since if since.endswith(".json") else f"{folder.rstrip('/')}/manifests/{since}.json"
    changes = changes_between(Manifest.load_file(earlier), Manifest.load(folder))
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(changes), indent=2, ensure_ascii=False) + "\n")
    else:
        _say(changes_summary(changes))


def _verify(folder: str, as_json: bool) -> None:
    from mmsa_dist.console import row_progress
    from mmsa_shards.verify import verify_folder

    with row_progress("verify") as progress:
        found = verify_folder(folder, progress=progress)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False) + "\n")
    elif found.faults:
        for fault in found.faults:
            Console(soft_wrap=True).print(fault, markup=False, highlight=False)
    else:
        _say(f"verified {found.shards:,} shards, {found.molecules:,} molecules, {found.bytes:,} bytes")
    if found.faults:
        _fail(f"{folder} is broken in {len(found.faults)} place{'s' if len(found.faults) > 1 else ''}", status=1)


@app.command()
def pretrain(
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Settings such as train.steps=1000.", metavar=_SETTINGS, show_default=False),
    ] = None,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest good checkpoint of run.dir.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all shards first; left out, only their sizes are looked at.")
    ] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    """Pre-train on prepared shards: alone, or on many processes under deepspeed.

    Example: deepspeed --num_accelerators 8 launch/pretrain.py --config launch/configs/base.yaml run.dir=runs/one
    """
    strangers, settings = _split(words)
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not of the form section.key=value, such as train.steps=1000")
    resolved = load_config(config, settings)

    from mmsa_dist.train.loop import pretrain as train

    train(resolved, resume=resume, verify=verify)


@app.command()
def embed(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Files of molecules or one folder of shards, then settings.", metavar=f"SOURCE... {_SETTINGS}"
        ),
    ],
    model: ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the Parquet parts.")],
    config: ConfigFile = None,
) -> None:
    """Write a vector for every molecule to Parquet: id, inchikey, smiles, embedding, ok, reason, in input order.

    Example: mmsa embed library.smi --model runs/quickstart/model --out vectors embed.view=unified
    """
    sources, settings = _split(words)
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
    _say(f"{summary.ok:,} of {summary.rows:,} rows have a vector ({summary.origin.width} numbers) → {summary.folder}")
    for reason, count in summary.reasons.items():
        _say(f"  {count:,} without: {reason}")


@app.command()
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
        _say(table)


@app.command()
def evaluate(
    model: ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results.{json,csv,md} and the splits.")],
    tasks: Annotated[str, typer.Option(help="Names with commas, such as bbbp,esol.")] = "freesolv",
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of MoleculeNet's CSV files; FreeSolv needs none."),
    ] = None,
    split: Annotated[Literal["hu-scaffold", "ogb-scaffold", "random"], typer.Option(help="Named split.")] = (
        "hu-scaffold"
    ),
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... of random splits and forests.", min=1)] = 3,
) -> None:
    """Probe frozen vectors on labelled molecules, beside ECFP4 and the mean, by the same code.

    Example: mmsa evaluate --model runs/quickstart/model --tasks bbbp,esol --data moleculenet --out evaluation
    """
    from mmsa_dist.embed import Embedder
    from mmsa_dist.evaluate import load_task, run_probe

    console = Console(stderr=True)
    loaded = [load_task(name.strip(), data) for name in tasks.split(",")]
    embedder = Embedder.from_pretrained(model)
    with console.status("evaluating") as status:
        results = run_probe(embedder, loaded, split=split, seeds=range(seeds), progress=status.update)
    results.write(out)
    table = Table()
    for name in ("task", "split", "metric", "features", "model", "test", "runs"):
        table.add_column(name, justify="right" if name in {"test", "runs"} else "left")
    for line in results.summaries():
        spread = f" ± {line.spread:.3f}" if line.spread is not None else ""
        row: list[Any] = [line.task, line.split, line.metric, line.features, line.model]
        table.add_row(*row, f"{line.mean:.3f}{spread}", str(len(line.values)), style="bold" if line.best else "")
    _say(table)
    _say(f"wrote {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
) -> None:
    """Write one HTML page on a run, at any moment of it: <RUN>/report.html."""
    from mmsa_dist.report import write_report

    with Console(stderr=True).status("writing the report"):
        path = write_report(run)
    _say(f"wrote {path}")


@app.command("config")
def show_config(
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="A YAML file, then settings; both may be left out.", metavar=f"[FILE] {_SETTINGS}"),
    ] = None,
) -> None:
    """Print the whole resolved configuration; what each key means stands in launch/configs/default.yaml."""
    files, settings = _split(words)
    if len(files) > 1:
        raise ValueError(f"one configuration file is read, not {len(files)}: {', '.join(files)}")
    sys.stdout.write(to_yaml(load_config(files[0] if files else None, settings)))
