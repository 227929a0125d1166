"""What DeepSpeed holds of a run: its files as copies in memory, and read again without executing a pickle."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor

from mmsa_dist.train.engine import Engine


class _WeightsOnlyCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's files read without ever executing a pickle."""

    def load(self, path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals(_harmless_classes()):
            return torch.load(path, map_location=map_location, weights_only=True)


def _harmless_classes() -> list[Any]:
    """What DeepSpeed puts into its files besides tensors and plain containers."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


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


def copy_engine(engine: Engine) -> dict[str, Any]:
    """Returns the files that this rank has in DeepSpeed's checkpoint, by name, as copies on the CPU (collective)."""
    folder, tag = Path("/nowhere"), "engine"
    copying = _CopyingCheckpointEngine(str(folder / tag))
    engine.checkpoint_engine = copying
    engine._copy_recovery_script = lambda save_path: None  # a script beside the weights, which `mmsa` has no use for
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    return copying.copies


def restore_engine(engine: Engine, folder: Path) -> bool:
    """Reads from `folder` what `copy_engine` gave on every rank (collective); False if it is not usable."""
    engine.checkpoint_engine = _WeightsOnlyCheckpointEngine(engine._config)
    loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name, load_lr_scheduler_states=False)
    return loaded is not None


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
