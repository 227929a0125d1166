"""DeepSpeed: from our configuration to its engine. Only this file and `engine_files` import it."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist

# Its functions take the process group as a default at the moment of import. PyTorch's compiler imports it, at whatever
# first call: were there a group by then, its threads would outlive it, and now and then abort the process at its end.
import torch.distributed.nn.functional

# DeepSpeed chooses its accelerator while it is imported, and warns where it has to guess that there is none.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed import DeepSpeedEngine as Engine
from torch import Tensor, nn

from mmsa_dist.config.schema import Config
from mmsa_dist.encoders import Encoder
from mmsa_dist.runtime.compile_locks import refuse_stale_compile_locks
from mmsa_dist.runtime.distributed import all_ranks_agree, rank, world_size


def start_processes() -> torch.device:
    """Joins the process group that the launcher laid out, or makes one of a single process; returns our device.

    The backend is nccl with GPUs and gloo without; every rank takes the GPU of its ``LOCAL_RANK``.

    Raises:
        StaleCompileLock: a process that was killed while it compiled would make this one wait for ever.
    """
    refuse_stale_compile_locks()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ.update(alone, MASTER_PORT=str(_free_port()))
    # DeepSpeed would compile a shared-memory all-reduce that only its inference engine calls: 35 s at the first
    # start, a compiler needed, and a lock file left behind by a rank that is killed meanwhile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    return device


def stop_processes() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def deepspeed_config(config: Config, world: int) -> dict[str, Any]:
    """The configuration of DeepSpeed that ours amounts to; users never write one.

    Raises:
        ValueError: the ranks do not divide the batch.
    """
    share = config.data.batch_size // config.train.accumulate
    if share % world:
        raise ValueError(
            f"data.batch_size / train.accumulate = {share} must be a multiple of the number of ranks, {world}; "
            "change one of the three"
        )
    return {
        "train_batch_size": config.data.batch_size,
        "train_micro_batch_size_per_gpu": share // world,
        "gradient_accumulation_steps": config.train.accumulate,
        "gradient_clipping": config.train.clip,
        "zero_optimization": {"stage": config.train.zero_stage},
        "zero_allow_untested_optimizer": True,
        # No module by name: of those ZeRO would average the gradients in bfloat16.
        "torch_autocast": {
            "enabled": config.train.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 1 << 40,
        "wall_clock_breakdown": False,
    }


def start_engine(module: nn.Module, config: Config) -> Engine:
    """Returns `module` (on its device) wrapped with AdamW and DeepSpeed.

    At ZeRO 3 its parameters are partitioned in place. With `train.activation_checkpointing` its encoders checkpoint.
    """
    if config.train.activation_checkpointing:
        for part in module.modules():
            if isinstance(part, Encoder):
                part.checkpoint_activations(reentrant=config.train.zero_stage == 3)
    optimizer = torch.optim.AdamW(
        parameter_groups(module, config), lr=config.train.lr, weight_decay=config.train.weight_decay
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        config=deepspeed_config(config, world_size()),
        dist_init_required=False,
    )
    return engine


def parameter_groups(module: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Parameters by learning rate: each encoder has its factor `train.lr_scale`, the rest has 1.

    Every group says its factor under ``lr_scale``. Vectors (biases, norms) are not decayed.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        scale = next((s for e, s in config.train.lr_scale.items() if f"encoders.{e}." in name), 1.0)
        groups.setdefault((scale, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": scale,
            "weight_decay": config.train.weight_decay if decayed else 0.0,
        }
        for (scale, decayed), parameters in groups.items()
    ]


def set_learning_rate(engine: Engine, lr: float) -> None:
    """Sets `lr`, times each group's own factor, for the coming step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def gradients_are_finite(engine: Engine) -> bool:
    """Whether every gradient is finite on every rank (collective); all ranks get the same answer.

    Call it between the last backward pass of a step and `engine.step()`. DeepSpeed's own check is not enough: it is
    made for every precision only where it clips, and tells too late for the neighbours' bank.
    """
    stage = engine.zero_optimization_stage()
    if stage == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    elif stage == 3:
        gradients = [engine.optimizer.grad_partitions_flat_buffer]
    else:
        shares = engine.optimizer.averaged_gradients.values()
        gradients = [gradient for share in shares for gradient in share or () if gradient is not None]
    # A share may be empty, where there are more ranks than numbers to share.
    norms = torch._foreach_norm(gradients) if gradients else ()
    (agreed,) = all_ranks_agree(not norms or bool(torch.isfinite(torch.stack(list(norms))).all()))
    return agreed


def discard_gradients(engine: Engine) -> None:
    """Forgets the gradients of a step that is not made, at any stage and after any of its micro-batches."""
    engine.zero_grad()
    engine.optimizer.zero_grad()
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):  # as they do themselves where fp16 overflows
        for number in engine.optimizer.averaged_gradients:
            engine.optimizer.averaged_gradients[number] = None
            engine.optimizer.all_grad_tensors[number] = None
        engine.optimizer.micro_step_id = -1
    elif stage == 3:
        engine.optimizer.averaged_gradients = {}


def whole(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
    """Within, `parameters` are there in full to be read, also at ZeRO 3 (collective); memory is that of all of them."""
    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(parameters))
    return gathered


def number_of_parameters(module: nn.Module) -> int:
    """How many numbers are learned, also where ZeRO 3 has left this rank a share of them."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict in full in the memory of rank 0's CPU, and nothing on other ranks (collective).

    At ZeRO 3 parameters come one after another, so that no device holds more than one of them besides its share.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        with whole([parameter]):
            if rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    if rank() == 0:
        persistent = module.state_dict().keys()
        state |= {n: b.detach().cpu().clone() for n, b in module.named_buffers() if n in persistent}
    return state


def learning_rate(config: Config, step: int) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then cosine to 0 at `train.steps`."""
    train = config.train
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / (train.steps - train.warmup_steps)
    return train.lr * 0.5 * (1 + math.cos(math.pi * progress))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
