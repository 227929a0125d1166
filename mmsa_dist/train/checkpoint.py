"""Checkpoints: complete or not there at all, verified before they are used.

A checkpoint is a folder ``step_N``: DeepSpeed's own files in ``engine/``, one file a rank for the neighbour source
(the bank), ``run.json`` (step, loader state, configuration, git revision, manifest digest, ranks) and
``digests.json`` (SHA-256 of every other file). It is written as ``step_N.tmp``, flushed and renamed; ``latest`` is
replaced last. Randomness is a function of seed and step (`mmsa_dist.runtime.seeds`), so no generator state is kept.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from mmsa_dist.data.order import LoaderState
from mmsa_dist.runtime.distributed import is_distributed, rank, world_size
from mmsa_dist.runtime.files import flush, sha256_of, write_atomically
from mmsa_dist.runtime.run_folder import git_state
from mmsa_dist.structure.global_neighbours import reshard
from mmsa_dist.train.engine import Engine
from mmsa_dist.train.engine_files import EngineFilesError, load_engine, save_engine

_ENGINE = "engine"
_FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands."""

    step: int
    """Optimizer steps done, counting those that were skipped."""
    loader: LoaderState


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``<run.dir>/checkpoints``.
        keep: newest checkpoints that stay.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(
        self,
        engine: Engine,
        neighbours: dict[str, torch.Tensor],
        state: RunState,
        *,
        config: dict[str, Any],
        manifest_digest: str,
    ) -> Path:
        """Writes ``step_N`` (collective); only a complete one ever has that name."""
        final = self._folder / f"step_{state.step}"
        temporary = final.with_name(f"{final.name}.tmp")
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        _barrier()
        save_engine(engine, temporary, _ENGINE)
        save_file(neighbours, temporary / _neighbours_file(rank()))
        _barrier()
        if rank() == 0:
            about = {
                "format": _FORMAT,
                "step": state.step,
                "loader": asdict(state.loader),
                "ranks": world_size(),
                "manifest": manifest_digest,
                "git": git_state(),
                "config": config,
            }
            write_atomically(temporary / "run.json", json.dumps(about, indent=2))
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            digests = {str(path.relative_to(temporary)): sha256_of(path) for path in files}
            for path in files:
                flush(path)
            write_atomically(temporary / "digests.json", json.dumps(digests, indent=2))
            if final.exists():
                shutil.rmtree(final)
            temporary.replace(final)
            flush(self._folder)
            write_atomically(self._folder / "latest", final.name + "\n")
            self._drop_old()
        _barrier()
        return final

    def newest_good(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose files are all as written, and a sentence for each newer one that is not.

        Rank 0 decides for all ranks.
        """
        answer: list[Any] = [None, []]
        if rank() == 0:
            for path in reversed(self._complete()):
                fault = _fault(path)
                if fault is None:
                    answer[0] = str(path)
                    break
                answer[1].append(f"checkpoint {path.name} is not used: {fault}")
        if is_distributed():
            dist.broadcast_object_list(answer, src=0)
        return (Path(answer[0]) if answer[0] else None), answer[1]

    def load(self, path: Path, engine: Engine, *, manifest_digest: str) -> tuple[RunState, dict[str, torch.Tensor]]:
        """Restores the engine (collective), also where another number of ranks saved it.

        Returns:
            Where the run stands, and the state of this rank's neighbour source.

        Raises:
            CheckpointError: another format, other shards or ZeRO stage, or files that this DeepSpeed does not read.
        """
        about = json.loads((path / "run.json").read_text())
        if about["format"] != _FORMAT:
            raise CheckpointError(f"{path} has checkpoint format {about['format']}; this version reads {_FORMAT}")
        if about["manifest"] != manifest_digest:
            raise CheckpointError(
                f"{path} was trained on other shards (manifest {about['manifest'][:12]}, now {manifest_digest[:12]}); "
                "point data.shards at those, or start a new run.dir"
            )
        stage, now = about["config"]["train"]["zero_stage"], engine.zero_optimization_stage()
        if stage != now:
            raise CheckpointError(
                f"{path} was saved at train.zero_stage={stage} and cannot be read at {now}; "
                f"set train.zero_stage={stage}"
            )
        try:
            load_engine(engine, path, _ENGINE, ranks=about["ranks"])
        except EngineFilesError as error:
            raise CheckpointError(f"{path} {error}") from error
        return RunState(about["step"], LoaderState(**about["loader"])), _neighbours_of_rank(path, about["ranks"])

    def _complete(self) -> list[Path]:
        """Checkpoints under their final name, oldest first."""
        found = [p for p in self._folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))

    def _drop_old(self) -> None:
        for path in self._complete()[: -self._keep]:
            shutil.rmtree(path)


def _neighbours_file(number: int) -> str:
    return f"neighbours-{number:05d}.safetensors"


def _neighbours_of_rank(path: Path, ranks: int) -> dict[str, torch.Tensor]:
    """What this rank's neighbour source was, dealt anew where another number of ranks saved it."""
    if ranks == world_size():
        return load_file(path / _neighbours_file(rank()))
    states = [load_file(path / _neighbours_file(number)) for number in range(ranks)]
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


def _barrier() -> None:
    if is_distributed():
        dist.barrier()
