"""Writes checkpoints while training continues: copied in memory at once, written by a thread, renamed when complete.

The state is copied at its step, so that later steps do not change what is saved. Each rank writes its files in a
thread and computes their SHA-256. After each step the ranks agree by one small collective, never from the thread,
whether all are done; then rank 0 writes ``digests.json`` and gives the folder its final name. If a rank cannot write,
all ranks drop that checkpoint: earlier ones stay, and training continues.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from mmsa_dist.runtime.distributed import all_ranks_agree, is_distributed, rank, world_size
from mmsa_dist.runtime.files import flush, sha256_of, write_text_atomically
from mmsa_dist.runtime.run_folder import git_state
from mmsa_dist.train.checkpoint import (
    CHECKPOINT_FORMAT,
    ENGINE_FOLDER,
    RunState,
    checkpoints_in,
    neighbours_file,
    step_of,
)
from mmsa_dist.train.engine import Engine
from mmsa_dist.train.engine_files import copied, copy_engine


@dataclass(frozen=True)
class SaveOutcome:
    """The outcome of saving a checkpoint, the same on all ranks."""

    saved: bool
    message: str
    """A sentence for the log: where it is, or why it was not saved and what to do."""


class CheckpointSaver:
    """Saves the checkpoints of one run, one at a time (every method is collective).

    Args:
        folder: ``<run.dir>/checkpoints``.
        keep: number of newest checkpoints to keep.
        config: the resolved configuration as plain values, stored in each checkpoint.
        manifest_digest: digest of the manifest of the training shards.
    """

    def __init__(self, folder: Path, *, keep: int, config: dict[str, Any], manifest_digest: str) -> None:
        self._folder = folder
        self._keep = keep
        self._config = config
        self._manifest_digest = manifest_digest
        self._git = git_state()
        self._writing: _Writing | None = None

    def begin(self, engine: Engine, neighbours: Mapping[str, Tensor], state: RunState) -> None:
        """Copies the state of the run and starts to write it.

        Args:
            engine: the engine of the run.
            neighbours: state of this rank's neighbour source.
            state: how far the run is.

        Raises:
            RuntimeError: the previous checkpoint is still being written; call `finish` first.
        """
        if self._writing is not None:
            raise RuntimeError(f"{self._writing.folder} is still being written; call finish first")
        copies = copy_engine(engine, ENGINE_FOLDER)
        files: dict[Path, Any] = {Path(ENGINE_FOLDER) / name: content for name, content in copies.items()}
        files[Path(neighbours_file(rank()))] = copied(dict(neighbours))
        if rank() == 0:
            files[Path("run.json")] = {
                "format": CHECKPOINT_FORMAT,
                "step": state.step,
                "loader": asdict(state.loader),
                "ranks": world_size(),
                "manifest": self._manifest_digest,
                "git": self._git,
                "config": self._config,
            }
        temporary = self._folder / f"step_{state.step}.tmp"
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed while it wrote
        if is_distributed():
            dist.barrier()
        self._writing = _Writing(temporary, files)

    def poll(self) -> SaveOutcome | None:
        """Completes the checkpoint in progress if every rank has written its part; returns the outcome, or None."""
        if self._writing is None or not all(all_ranks_agree(self._writing.has_ended())):
            return None
        return self._complete(self._writing)

    def finish(self) -> SaveOutcome | None:
        """Waits for the checkpoint in progress and completes it; returns the outcome, or None if there was none."""
        if self._writing is None:
            return None
        self._writing.wait()
        return self._complete(self._writing)

    def _complete(self, writing: _Writing) -> SaveOutcome:
        self._writing = None
        part = (writing.digests, writing.error)
        parts: list[Any] = [None] * world_size()
        if is_distributed():
            dist.all_gather_object(parts, part)
        else:
            parts = [part]
        errors = [f"rank {number}: {error}" for number, (_, error) in enumerate(parts) if error]
        outcome: list[Any] = [None]
        if rank() == 0:
            outcome = [self._name_or_drop(writing.folder, [digests for digests, _ in parts], errors)]
        if is_distributed():
            dist.broadcast_object_list(outcome, src=0)
        return outcome[0]

    def _name_or_drop(self, temporary: Path, digests: list[dict[str, str]], errors: list[str]) -> SaveOutcome:
        """Gives a complete checkpoint its final name, or removes an incomplete one."""
        final = temporary.with_name(temporary.name.removesuffix(".tmp"))
        if not errors:
            try:
                together = {name: digest for part in digests for name, digest in part.items()}
                write_text_atomically(temporary / "digests.json", json.dumps(together, indent=2))
                # This step and later ones are from a future that the run went back from, as they are damaged.
                for path in checkpoints_in(self._folder):
                    if step_of(path) >= step_of(final):
                        shutil.rmtree(path)
                temporary.replace(final)
                flush(self._folder)
                write_text_atomically(self._folder / "latest", final.name + "\n")
                for path in checkpoints_in(self._folder)[: -self._keep]:
                    shutil.rmtree(path)
                return SaveOutcome(True, f"saved {final}")
            except OSError as error:
                errors = [f"rank 0: {error}"]
        shutil.rmtree(temporary, ignore_errors=True)
        kept = checkpoints_in(self._folder)
        stays = f"{kept[-1].name} stays the newest" if kept else "there is none yet"
        return SaveOutcome(
            False,
            f"checkpoint {final.name} was not saved ({'; '.join(errors)}); {stays}. Make room in {self._folder}, or "
            "fix what is named",
        )


class _Writing:
    """This rank's part of a checkpoint, which a thread writes."""

    def __init__(self, folder: Path, files: Mapping[Path, Any]) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}
        self.error: str | None = None
        self._files = files
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def has_ended(self) -> bool:
        """Returns whether the thread is done, with or without an error."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Waits until the thread is done."""
        self._thread.join()

    def _run(self) -> None:
        try:
            for name, content in self._files.items():
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, content)
                flush(path)
                flush(path.parent)
                self.digests[str(name)] = sha256_of(path)
        except Exception as error:  # on a full disk torch raises RuntimeError, safetensors an error of its own
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self._files = {}


def _write(path: Path, content: Any) -> None:
    """Writes tensors as safetensors, plain values as JSON, and DeepSpeed's states in torch's format."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content, indent=2))
    else:
        torch.save(content, path)
