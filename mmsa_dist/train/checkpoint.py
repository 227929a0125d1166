"""What a checkpoint contains, which one a run resumes from, and how it is read. `train.saving` writes them.

A checkpoint is a folder ``step_N`` with DeepSpeed's own files in ``engine/``, one file per rank for the neighbour
source (the bank), ``run.json`` (step, loader state, configuration, git revision, manifest digest, ranks) and
``digests.json`` (SHA-256 of every other file). It is written as ``step_N.tmp``, flushed and renamed, so a folder named
``step_N`` is complete. ``latest`` is replaced last. Randomness is a function of seed and step
(`mmsa_dist.runtime.seeds`), so a checkpoint holds no generator state.
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

from mmsa_dist.config.recorded import UNSET, differences, in_words
from mmsa_dist.data.order import LoaderState
from mmsa_dist.runtime.distributed import is_distributed, rank, world_size
from mmsa_dist.runtime.files import sha256_of
from mmsa_dist.structure.global_neighbours import reshard
from mmsa_dist.train.engine import Engine
from mmsa_dist.train.engine_files import EngineFilesError, load_engine

ENGINE_FOLDER = "engine"
CHECKPOINT_FORMAT = 3

_OF_THE_START = frozenset({"run.dir", "train.stop_after"})  # each start of a run may choose them
_OF_THE_ORDER = frozenset({"run.seed", "data.batch_size", "data.lanes", "data.window_blocks"})
"""Settings on which the molecules of a step depend: with others, a position within an epoch means nothing."""
_WITH_HEADS = ("atom", "fingerprint", "descriptor")
"""Losses with parameters of their own, which exist if their weight is above 0."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The message says which one, why, and what to do."""


@dataclass(frozen=True)
class RunState:
    """How far a run is."""

    step: int
    """Number of optimizer steps done, including those that were skipped."""
    loader: LoaderState


class Restored(NamedTuple):
    """What a checkpoint holds besides the engine."""

    run: RunState
    neighbours: dict[str, torch.Tensor]
    """State of the neighbour source of this rank."""
    news: tuple[str, ...]
    """What the user should know: settings that have changed since it was saved, and what follows from that."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``<run.dir>/checkpoints``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest_good(self) -> tuple[Path | None, list[str]]:
        """Finds the newest checkpoint whose files are intact, on rank 0 for all ranks (collective).

        Returns:
            Its path, or None if there is none; and a sentence about each newer checkpoint that is damaged.
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
        """Restores `engine` from a checkpoint, even one saved by a different number of ranks (collective).

        Args:
            path: folder of the checkpoint.
            engine: the engine to restore, in place.
            manifest_digest: digest of the manifest of this run's shards.
            config: configuration of this run.

        Raises:
            CheckpointError: the checkpoint has another format, belongs to other shards, another model or ZeRO stage,
                or has files that this version of DeepSpeed cannot read.
        """
        about = json.loads((path / "run.json").read_text())
        if about["format"] != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {about['format']}; this version reads {CHECKPOINT_FORMAT}: start a new "
                "run.dir, or resume with the version that saved it"
            )
        if about["manifest"] != manifest_digest:
            raise CheckpointError(
                f"{path} was trained on other shards (manifest {about['manifest'][:12]}, now {manifest_digest[:12]}); "
                "point data.shards at those, or start a new run.dir"
            )
        changed = differences(about["config"], config)
        had, has = _heads(about["config"]), _heads(config)
        fixed_heads = (had ^ has) | ({"loss.fingerprint_bits"} if "loss.fingerprint" in had & has else set())
        fixed = {key: values for key, values in changed.items() if key in fixed_heads or _is_fixed(key, *values)}
        if fixed:
            raise CheckpointError(
                f"{path} was saved with {in_words(fixed)}; restore that setting, or start a new run.dir"
            )
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
        loader, news = LoaderState(**about["loader"]), []
        told = {key: values for key, values in changed.items() if key not in _OF_THE_START}
        if told:
            news.append(f"{path.name} was saved with {in_words(told)}; continuing with what is set now")
        if loader.step and _OF_THE_ORDER & changed.keys():
            news.append(
                f"the order of the molecules changes with {' and '.join(sorted(_OF_THE_ORDER & changed.keys()))}, so "
                f"the rest of epoch {loader.epoch} is left out: going on at the beginning of epoch {loader.epoch + 1}"
            )
            loader = LoaderState(loader.epoch + 1, 0)
        return Restored(RunState(about["step"], loader), _neighbours_of_rank(path, about["ranks"]), tuple(news))


def _is_fixed(key: str, was: Any, now: Any) -> bool:
    """Returns whether a run must keep a setting: its network, and the groups in which parameters are optimized."""
    if key.startswith("train.lr_scale."):  # 1 where it is not set
        return bool((1.0 if was is UNSET else was) != (1.0 if now is UNSET else now))
    return key.startswith("model.") and UNSET not in (was, now)


def _heads(config: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Returns the weights of the losses that have parameters, by their keys, as far as they are above 0."""
    return {f"loss.{name}" for name in _WITH_HEADS if config.get("loss", {}).get(name)}


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Returns the number of steps after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step_"))


def neighbours_file(number: int) -> str:
    """Returns the name of the file with the state of the neighbour source of rank `number`."""
    return f"neighbours-{number:05d}.safetensors"


def _neighbours_of_rank(path: Path, ranks: int) -> dict[str, torch.Tensor]:
    """Returns the state of this rank's neighbour source, redistributed if a different number of ranks saved it."""
    if ranks == world_size():
        return load_file(path / neighbours_file(rank()))
    states = [load_file(path / neighbours_file(number)) for number in range(ranks)]
    return reshard(states, rank(), world_size()) if states[0] else {}


def _fault(path: Path) -> str | None:
    """Returns what is wrong with the files of a checkpoint, or None if they are intact."""
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
