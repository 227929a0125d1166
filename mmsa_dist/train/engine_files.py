"""DeepSpeed's own files: copied in memory, read without executing pickles, repartitioned for other numbers of ranks."""

from __future__ import annotations

import copy
import io
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor

from mmsa_dist.runtime.distributed import all_ranks_agree, is_distributed, rank, world_size
from mmsa_dist.train.engine import Engine

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class EngineFilesError(ValueError):
    """DeepSpeed's files cannot be used. The message continues a sentence that begins with the checkpoint's name."""


class WeightsOnlyCheckpointEngine(TorchCheckpointEngine):
    """Reads DeepSpeed's files without ever executing a pickle."""

    def load(self, path: str, map_location: Any = None) -> Any:
        """Returns what ``torch.load`` reads with ``weights_only``; the arguments are DeepSpeed's."""
        torch.serialization.add_safe_globals(_harmless_classes())
        return torch.load(path, map_location=map_location, weights_only=True)


class _CopyingCheckpointEngine(TorchCheckpointEngine):
    """Keeps copies of DeepSpeed's files in memory instead of writing them."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder
        self.copies: dict[str, Any] = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Creates no folder, because nothing is written yet."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keeps a copy under the name of the file."""
        self.copies[str(Path(path).relative_to(self._folder))] = copied(state_dict)


def copy_engine(engine: Engine, tag: str) -> dict[str, Any]:
    """Returns copies on the CPU of this rank's files of DeepSpeed's checkpoint `tag`, by name (collective)."""
    folder = Path("/nowhere")
    copying = _CopyingCheckpointEngine(str(folder / tag))
    before, engine.checkpoint_engine = engine.checkpoint_engine, copying
    engine._copy_recovery_script = lambda save_path: None  # a script that `mmsa` does not need
    try:
        engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    finally:
        engine.checkpoint_engine = before  # so that the engine does not keep the copies
    return copying.copies


def load_engine(engine: Engine, folder: Path, tag: str, *, ranks: int) -> None:
    """Restores parameters and moments from ``folder/tag``, but not the options of the optimizer (collective).

    If ZeRO has partitioned them among a different number of ranks, rank 0 first joins the partitions in a temporary
    folder beside `folder`, which takes as much disk space as the checkpoint.

    Args:
        engine: engine with the same model, groups of parameters and ZeRO stage as the one that was saved.
        folder: contains the folder `tag`; every rank must see it.
        tag: name of the folder with the files that `copy_engine` returned on each rank.
        ranks: number of ranks that saved it.

    Raises:
        EngineFilesError: the partitions could not be joined, or DeepSpeed cannot read the files.
    """
    engine.checkpoint_engine = WeightsOnlyCheckpointEngine(engine._config)
    # DeepSpeed restores the options of the optimizer too, and at stage 3 gives every group those of the first.
    options = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    if engine.zero_optimization_stage() == 0 or ranks == world_size():
        _load(engine, folder, tag)
    else:
        _load_joined(engine, folder, tag, ranks=ranks)
    for group, own in zip(engine.optimizer.param_groups, options, strict=True):
        group.update(own)


def _load_joined(engine: Engine, folder: Path, tag: str, *, ranks: int) -> None:
    """Restores what a different number of ranks saved; see `load_engine`."""
    joined = folder.with_name(f"{folder.name}.joined.tmp")
    fault = _join_partitions(folder / tag, joined / tag) if rank() == 0 else None
    try:
        if not all(all_ranks_agree(fault is None)):
            raise EngineFilesError(
                f"was saved by {ranks} ranks, and its partitions could not be joined for {world_size()}: "
                f"{fault or 'rank 0 says why'}; make room beside it, or start {ranks} ranks"
            )
        engine._config.load_universal_checkpoint = True
        with _weights_only():
            _load(engine, joined, tag)
        # All parameters share one tensor as their count of steps, which every group would then increment.
        for moments in engine.optimizer.optimizer.state.values():
            if torch.is_tensor(moments.get("step")):
                moments["step"] = moments["step"].clone()
    finally:
        engine._config.load_universal_checkpoint = False
        if is_distributed():
            dist.barrier()
        if rank() == 0:
            shutil.rmtree(joined, ignore_errors=True)


def _load(engine: Engine, folder: Path, tag: str) -> None:
    loaded, _ = engine.load_checkpoint(str(folder), tag=tag, load_lr_scheduler_states=False)
    if not all(all_ranks_agree(loaded is not None)):
        raise EngineFilesError("was not read by DeepSpeed; see its message above")


def _join_partitions(source: Path, target: Path) -> str | None:
    """Writes a "universal" checkpoint, one file per parameter and moment; returns what went wrong, or None."""
    options = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # in this process, because a fork would not survive NCCL and threads
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    shutil.rmtree(target.parent, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        with _weights_only(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)
    except Exception as error:  # the other ranks wait for an answer
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _weights_only() -> Iterator[None]:
    """Makes torch refuse pickles that could execute anything, even if its caller asks for them."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        torch.serialization.add_safe_globals(_harmless_classes())
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def _harmless_classes() -> list[Any]:
    """Returns the classes that DeepSpeed puts into its files besides tensors and plain containers."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def copied(value: Any) -> Any:
    """Returns a deep copy in which every tensor is on the CPU, in memory of its own."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        twin = copy.copy(value)  # keeps the versions that a state dict carries as an attribute
        for key, item in value.items():
            twin[key] = copied(item)
        return twin
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(copied(item) for item in value)
    return copy.deepcopy(value)
