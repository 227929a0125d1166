"""DeepSpeed's own files: copied in memory, read without executing a pickle, dealt anew to another number of ranks."""

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
    """DeepSpeed's files cannot be used; the message goes on from the name of the checkpoint."""


class WeightsOnlyCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's files read without ever executing a pickle."""

    def load(self, path: str, map_location: Any = None) -> Any:
        """Returns what ``torch.load`` reads with ``weights_only``; arguments are DeepSpeed's."""
        torch.serialization.add_safe_globals(_harmless_classes())
        return torch.load(path, map_location=map_location, weights_only=True)


class _CopyingCheckpointEngine(TorchCheckpointEngine):
    """Takes DeepSpeed's files as copies in memory instead of writing them."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder
        self.copies: dict[str, Any] = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes none: nothing is written yet."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keeps a copy under the file's name."""
        self.copies[str(Path(path).relative_to(self._folder))] = copied(state_dict)


def copy_engine(engine: Engine, tag: str) -> dict[str, Any]:
    """Returns this rank's files of DeepSpeed's checkpoint `tag`, by name, as copies on the CPU (collective)."""
    folder = Path("/nowhere")
    copying = _CopyingCheckpointEngine(str(folder / tag))
    engine.checkpoint_engine = copying
    engine._copy_recovery_script = lambda save_path: None  # a script beside the weights, which `mmsa` has no use for
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    return copying.copies


def load_engine(engine: Engine, folder: Path, tag: str, *, ranks: int) -> None:
    """Restores parameters and moments from ``folder/tag`` (collective).

    Where ZeRO has shared them out among another number of ranks, rank 0 first puts the shares together in a folder
    beside `folder`, which goes away again; it takes the disk space of the checkpoint once more.

    Args:
        engine: of the same model and ZeRO stage as the one that was saved.
        folder: holds the folder `tag`; all ranks see it.
        tag: name of the folder with the files that `copy_engine` gave on each rank.
        ranks: how many saved it.

    Raises:
        EngineFilesError: the shares could not be put together, or DeepSpeed does not read the files.
    """
    engine.checkpoint_engine = WeightsOnlyCheckpointEngine(engine._config)
    if engine.zero_optimization_stage() == 0 or ranks == world_size():
        _load(engine, folder, tag)
        return
    joined = folder.with_name(f"{folder.name}.joined.tmp")
    fault = _join_shares(folder / tag, joined / tag) if rank() == 0 else None
    try:
        if not all(all_ranks_agree(fault is None)):
            raise EngineFilesError(
                f"was saved by {ranks} ranks, and its shares could not be put together for {world_size()}: "
                f"{fault or 'rank 0 says why'}; make room beside it, or start {ranks} ranks"
            )
        # At stage 3 DeepSpeed gives every group of parameters the options of the first.
        options = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
        engine._config.load_universal_checkpoint = True
        with _weights_only():
            _load(engine, joined, tag)
        for group, own in zip(engine.optimizer.param_groups, options, strict=True):
            group.update(own)
        # And one tensor to all of them as the count of steps, which each group would then raise.
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


def _join_shares(source: Path, target: Path) -> str | None:
    """Makes a "universal" checkpoint, a file a parameter and moment; returns what went wrong, None if nothing."""
    options = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,  # in this process: a fork would not survive NCCL and threads
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
    """Within, torch reads no pickle that could execute anything, even where its caller asks for it."""
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
    """What DeepSpeed puts into its files besides tensors and plain containers."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def copied(value: Any) -> Any:
    """A deep copy with every tensor on the CPU in memory of its own."""
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
