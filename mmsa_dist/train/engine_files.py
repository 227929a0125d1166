"""DeepSpeed's own files: written, read without executing a pickle, and dealt anew to another number of ranks."""

from __future__ import annotations

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


def save_engine(engine: Engine, folder: Path, tag: str) -> None:
    """Writes the files of all ranks to ``folder/tag`` (collective)."""
    engine.checkpoint_engine = WeightsOnlyCheckpointEngine(engine._config)
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False)


def load_engine(engine: Engine, folder: Path, tag: str, *, ranks: int) -> None:
    """Restores parameters and moments from ``folder/tag`` (collective).

    Where ZeRO has shared them out among another number of ranks, rank 0 first puts the shares together in a folder
    beside `folder`, which goes away again; it takes the disk space of the checkpoint once more.

    Args:
        engine: of the same model and ZeRO stage as the one that was saved.
        folder: as given to `save_engine`; all ranks see it.
        tag: likewise.
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
