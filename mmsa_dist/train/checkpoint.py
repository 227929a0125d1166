"""Checkpoints: what one consists of, which is used, and how it is read; `mmsa_dist.train.saving` writes them.

A checkpoint is a folder ``step_N``: DeepSpeed's own files in ``engine/``, one file a rank for the neighbour source
(the bank), ``run.json`` (step, loader state, configuration, git revision, manifest digest, ranks) and
``digests.json`` (SHA-256 of every other file). It is written as ``step_N.tmp``, flushed and renamed, so a folder of
that name is complete; ``latest`` is replaced last. Randomness is a function of seed and step
(`mmsa_dist.runtime.seeds`), so no generator state is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from mmsa_dist.data.order import LoaderState
from mmsa_dist.runtime.distributed import is_distributed, rank, world_size
from mmsa_dist.runtime.files import sha256_of
from mmsa_dist.structure.global_neighbours import reshard
from mmsa_dist.train.engine import Engine
from mmsa_dist.train.engine_files import EngineFilesError, load_engine

ENGINE_FOLDER = "engine"
CHECKPOINT_FORMAT = 1

_UNSET = type("Unset", (), {"__repr__": lambda self: "(not set)"})()
"""Value of a setting that the version which saved the checkpoint did not have, or this one has no more."""
_OF_THE_START = frozenset({"run.dir", "train.stop_after"})  # where to, and where to stop


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands."""

    step: int
    """Optimizer steps done, counting those that were skipped."""
    loader: LoaderState


class Restored(NamedTuple):
    """What a checkpoint holds beside the engine."""

    run: RunState
    neighbours: dict[str, torch.Tensor]
    """State of this rank's neighbour source."""
    changed: str
    """Settings that were others when it was saved, with both values; where to, and where to stop, are not counted."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``<run.dir>/checkpoints``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest_good(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose files are all as written, and a sentence for each newer one that is not.

        Rank 0 decides for all ranks.
        """
        answer: list[Any] = [None, []]
        if rank() == 0:
            for path in reversed(checkpoints_in(self._folder)):
                fault = _fault(path)
                if fault is None:
                    answer[0] = str(path)
                    break
                answer[1].append(f"checkpoint {path.name} is not used: {fault}")
        if is_distributed():
            dist.broadcast_object_list(answer, src=0)
        return (Path(answer[0]) if answer[0] else None), answer[1]

    def load(
        self, path: Path, engine: Engine, *, manifest_digest: str, config: Mapping[str, Mapping[str, Any]]
    ) -> Restored:
        """Restores the engine (collective), also where another number of ranks saved it.

        Args:
            path: of the checkpoint.
            engine: to be restored.
            manifest_digest: of the shards of this run.
            config: its configuration.

        Raises:
            CheckpointError: another format, other shards, model or ZeRO stage, or files that this DeepSpeed does not
                read.
        """
        about = json.loads((path / "run.json").read_text())
        if about["format"] != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {about['format']}; this version reads {CHECKPOINT_FORMAT}"
            )
        if about["manifest"] != manifest_digest:
            raise CheckpointError(
                f"{path} was trained on other shards (manifest {about['manifest'][:12]}, now {manifest_digest[:12]}); "
                "point data.shards at those, or start a new run.dir"
            )
        changed = _differences(about["config"], config)
        of_model = {key: values for key, values in changed.items() if key.startswith("model.") and _UNSET not in values}
        if of_model:
            raise CheckpointError(f"{path} was saved with {_told(of_model)}; set what it was, or start a new run.dir")
        stage, now = about["config"]["train"]["zero_stage"], engine.zero_optimization_stage()
        if stage != now:
            raise CheckpointError(
                f"{path} was saved at train.zero_stage={stage} and cannot be read at {now}; "
                f"set train.zero_stage={stage}"
            )
        try:
            load_engine(engine, path, ENGINE_FOLDER, ranks=about["ranks"])
        except EngineFilesError as error:
            raise CheckpointError(f"{path} {error}") from error
        return Restored(
            RunState(about["step"], LoaderState(**about["loader"])),
            _neighbours_of_rank(path, about["ranks"]),
            _told({key: values for key, values in changed.items() if key not in _OF_THE_START}),
        )


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], section: str = "") -> dict[str, tuple[Any, Any]]:
    """The keys, with dots, of which the values differ, and both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(was.keys() | now.keys()):
        key, before, after = f"{section}{name}", was.get(name, _UNSET), now.get(name, _UNSET)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= _differences(before, after, f"{key}.")
        elif before != after:
            found[key] = before, after
    return found


def _told(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key}={was!r}, now {now!r}" for key, (was, now) in changed.items())


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints under their final name, oldest first."""
    found = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def neighbours_file(number: int) -> str:
    """Name of the file that holds what the neighbour source of a rank remembers."""
    return f"neighbours-{number:05d}.safetensors"


def _neighbours_of_rank(path: Path, ranks: int) -> dict[str, torch.Tensor]:
    """What this rank's neighbour source was, dealt anew where another number of ranks saved it."""
    if ranks == world_size():
        return load_file(path / neighbours_file(rank()))
    states = [load_file(path / neighbours_file(number)) for number in range(ranks)]
    return reshard(states, rank(), world_size()) if states[0] else {}


def _fault(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if all are as written."""
    try:
        digests = json.loads((path / "digests.json").read_text())
    except (OSError, ValueError) as error:
        return f"digests.json cannot be read ({error})"
    for name, digest in digests.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if sha256_of(file) != digest:
            return f"{name} is not what was written (its SHA-256 differs)"
    return None
