"""Snapshot of a run folder: missing parts are None, unreadable parts are listed with the reason."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmsa_dist.config.load import load_config
from mmsa_dist.config.schema import Config
from mmsa_dist.embed.parquet import SUMMARY, Embeddings, read_embeddings
from mmsa_dist.embed.pretrained import PretrainedModel
from mmsa_dist.report.contact_sheet import small_sheet
from mmsa_dist.report.shard_statistics import ShardStatistics, inspect_shards
from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_shards.manifest import MANIFEST_NAME, Manifest, ManifestError

T = TypeVar("T")
_BLOCKS_READ = 512  # for the molecule statistics: a second or two
EVALUATION = Path("evaluation") / "results.json"


@dataclass(frozen=True)
class Series:
    """A metric over optimizer steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        """The latest value."""
        return self.values[-1]


@dataclass(frozen=True)
class RunRecord:
    """Contents of a run folder."""

    root: Path
    config: Config | None
    environment: dict[str, Any] | None
    metrics: dict[str, Series]
    """By name; metrics without a finite value are omitted."""
    manifest: Manifest | None
    shards: str
    """Folder or URL of the manifest, whether or not it exists."""
    molecules: ShardStatistics | None
    """Statistics of the manifest's shards."""
    sheet: bytes | None
    """PNG of some molecules."""
    model: PretrainedModel | None
    embeddings: Embeddings | None
    evaluation: dict[str, Any] | None
    faults: dict[str, str] = field(default_factory=dict)
    """Why a part that exists cannot be read, by part."""

    @property
    def steps(self) -> int:
        """The latest optimizer step of any metric."""
        return max((series.steps[-1] for series in self.metrics.values()), default=0)

    def last(self, metric: str) -> float | None:
        """Returns the latest value of a metric, or None."""
        return self.metrics[metric].last if metric in self.metrics else None


def read_record(run_dir: str | os.PathLike[str]) -> RunRecord:
    """Reads the contents of a run folder.

    Raises:
        FileNotFoundError: the folder does not exist or is not a run folder.
    """
    folder = RunFolder(Path(run_dir))
    if not folder.root.is_dir():
        raise FileNotFoundError(f"run folder {folder.root} does not exist; `mmsa pretrain` makes it")
    evaluation = folder.root / EVALUATION
    parts = (
        folder.config,
        folder.environment,
        folder.metrics,
        folder.root / "shards",
        folder.model,
        folder.embeddings,
        evaluation,
    )
    if not any(path.exists() for path in parts):
        names = ", ".join(path.relative_to(folder.root).as_posix() for path in parts)
        raise FileNotFoundError(f"{folder.root} is not the folder of a run: it has none of {names}")
    faults: dict[str, str] = {}

    def attempt(part: str, reader: Callable[[], T]) -> T | None:
        try:
            return reader()
        except (ValueError, OSError, KeyError, TypeError) as error:
            faults[part] = str(error).strip().split("\n")[0] or type(error).__name__
            return None

    def read(part: str, path: Path, reader: Callable[[Path], T]) -> T | None:
        return attempt(part, lambda: reader(path)) if path.exists() else None

    config = read("configuration", folder.config, load_config)
    named = config.data.shards if config else ""
    shards = folder.shards(named)
    # A run that names shards has read them; those inside its folder may still be in preparation.
    expected = named or (Path(shards) / MANIFEST_NAME).exists()
    manifest = attempt("preparation", lambda: _read_manifest(folder, named)) if expected else None
    filled = manifest is not None and manifest.ledger.written > 0
    molecules = attempt("molecules", lambda: inspect_shards(shards, blocks=_BLOCKS_READ)) if filled else None
    return RunRecord(
        root=folder.root,
        config=config,
        environment=read("environment", folder.environment, _read_environment),
        metrics=read("metrics", folder.metrics, read_metrics) or {},
        manifest=manifest,
        shards=shards,
        molecules=molecules,
        sheet=attempt("molecules", lambda: small_sheet(shards)) if molecules is not None else None,
        model=read("model", folder.model, PretrainedModel.load),
        embeddings=read("embeddings", folder.embeddings / SUMMARY, lambda path: read_embeddings(path.parent)),
        evaluation=read("evaluation", evaluation, _read_evaluation),
        faults=faults,
    )


def read_metrics(path: Path) -> dict[str, Series]:
    """Reads ``metrics.jsonl``, ignoring a last line that is still being written.

    Raises:
        ValueError: another line is not a JSON object with a step.
    """
    lines = path.read_text().split("\n")
    points: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is incomplete
        if not line.strip():
            continue
        try:
            scalars = json.loads(line)
            step = int(scalars.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path.name}, line {number}, is not a JSON object with a step: {error}") from error
        for name, value in scalars.items():
            if isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, {})[step] = float(value)  # a repeated step counts once
    return {name: Series(tuple(steps := sorted(of)), tuple(of[step] for step in steps)) for name, of in points.items()}


def _read_manifest(folder: RunFolder, named: str) -> Manifest:
    """Reads the manifest of a run's shards, which are `named` by its configuration.

    Raises:
        ManifestError: it is missing, damaged or not on this machine, or belongs to other shards than the run trains on.
    """
    shards, trained_on = folder.shards(named), folder.manifest_digest
    if "://" in named or "::" in named:  # a run folder from someone else must not make a report use the network
        raise ManifestError(f"{named} is a URL, and a report reads local shards only; see `mmsa inspect {named}`")
    try:
        manifest = Manifest.load(shards)
    except ManifestError as error:
        raise ManifestError(f"data.shards of {folder.config}: {error}" if named else str(error)) from error
    if trained_on is not None and manifest.digest != trained_on:
        raise ManifestError(
            f"{shards} does not hold the run's shards: its manifest has the digest {manifest.digest[:12]}, the "
            f"training used {trained_on[:12]}; set data.shards in {folder.config} to the folder where they are"
        )
    return manifest


def _read_environment(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part) or {}, dict) for part in ("git", "libraries")
    ):
        raise ValueError(f"{path.name} is not what `mmsa pretrain` writes")
    return content


def _read_evaluation(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    lines = content.get("summaries") if isinstance(content, dict) else None
    notes = content.get("notes", []) if isinstance(content, dict) else None
    if not isinstance(lines, list) or not all(map(_is_summary, lines)) or not isinstance(notes, list):
        raise ValueError(f"{path.name} is not what `mmsa evaluate` writes")
    return content


def _is_summary(line: object) -> bool:
    """Returns whether a line of results has the fields of a table (`mmsa_dist.evaluate.results.Summary`)."""
    return (
        isinstance(line, dict)
        and all(isinstance(line.get(key), str) for key in ("task", "split", "metric", "features", "model"))
        and all(isinstance(line.get(key), int | float | None) for key in ("mean", "spread"))
        and isinstance(line.get("values"), list)
        and isinstance(line.get("best"), bool)
    )
