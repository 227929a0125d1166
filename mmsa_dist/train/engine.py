"""DeepSpeed's engine, set up from our configuration. Only this file and `engine_files` import DeepSpeed."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist

# Its functions bind the default process group when it is imported. PyTorch's compiler would import it at its first
# call. If there were a group by then, its threads would outlive it, and sometimes abort the process at exit.
import torch.distributed.nn.functional

# DeepSpeed chooses its accelerator when it is imported, and warns if it has to guess that there is none.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed import DeepSpeedEngine as Engine
from torch import Tensor, nn

from mmsa_dist.config.schema import Config
from mmsa_dist.encoders import Encoder
from mmsa_dist.runtime.compile_locks import refuse_stale_compile_locks
from mmsa_dist.runtime.distributed import all_ranks_agree, rank, world_size


def start_processes() -> torch.device:
    """Joins the process group of the launcher, or creates one of a single process; returns the device of this rank.

    The backend is nccl with GPUs and gloo without. Each rank uses the GPU of its ``LOCAL_RANK``.

    Raises:
        StaleCompileLock: a killed process has left a compilation lock, on which this one would wait for ever.
    """
    refuse_stale_compile_locks()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ.update(alone, MASTER_PORT=str(_free_port()))
    # DeepSpeed would compile a shared-memory all-reduce that only its inference engine calls. That takes 35 s at the
    # first start, needs a compiler, and leaves a lock file behind if a rank is killed meanwhile.
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
    """Returns the configuration for DeepSpeed; users never write one.

    Raises:
        ValueError: the batch cannot be divided among the ranks.
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
        # An empty list: ZeRO would average the gradients of the modules in it in bfloat16.
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
    """Returns the parameters in groups of equal learning rate and weight decay.

    An encoder has its factor of `train.lr_scale`, the rest has 1; a group has it under ``lr_scale``. Vectors (biases,
    norms) are not decayed.
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
    """Sets the learning rate of the next step to `lr`, times the factor of each group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def gradients_are_finite(engine: Engine) -> bool:
    """Returns whether every gradient is finite on every rank, the same on all ranks (collective).

    Call it between the last backward pass of a step and `engine.step()`. DeepSpeed's own check is not enough: it covers
    every precision only where it clips, and comes too late for the bank of neighbours.
    """
    stage = engine.zero_optimization_stage()
    if stage == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    elif stage == 3:
        gradients = [engine.optimizer.grad_partitions_flat_buffer]
    else:
        partitions = engine.optimizer.averaged_gradients.values()
        gradients = [gradient for partition in partitions for gradient in partition or () if gradient is not None]
    return _finite_on_all_ranks(gradients)


def parameters_are_finite(engine: Engine) -> bool:
    """Returns whether every parameter is finite on every rank, the same on all ranks (collective).

    At ZeRO 3 it takes the memory of all of them.
    """
    with whole(engine.module.parameters()):
        return _finite_on_all_ranks([parameter.detach() for parameter in engine.module.parameters()])


def _finite_on_all_ranks(tensors: list[Tensor]) -> bool:
    # A partition is empty if there are more ranks than numbers.
    norms = torch._foreach_norm(tensors) if tensors else ()
    (agreed,) = all_ranks_agree(not norms or bool(torch.isfinite(torch.stack(list(norms))).all()))
    return agreed


def discard_gradients(engine: Engine) -> None:
    """Discards the gradients of a step that is skipped, at any ZeRO stage and after any of its micro-batches."""
    engine.zero_grad()
    engine.optimizer.zero_grad()
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):  # as DeepSpeed does when fp16 overflows
        for number in engine.optimizer.averaged_gradients:
            engine.optimizer.averaged_gradients[number] = None
            engine.optimizer.all_grad_tensors[number] = None
        engine.optimizer.micro_step_id = -1
    elif stage == 3:
        engine.optimizer.averaged_gradients = {}


def whole(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
    """Returns a context in which `parameters` can be read in full, also at ZeRO 3 (collective).

    It takes the memory of all of them.
    """
    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(parameters))
    return gathered


def number_of_parameters(module: nn.Module) -> int:
    """Returns how many numbers are learned on all ranks, also where ZeRO 3 has partitioned them."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Returns the full state dict in CPU memory on rank 0, and an empty one on other ranks (collective).

    At ZeRO 3 parameters are gathered one by one, so that no device holds more than one of them besides its partition.
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
    """Returns the learning rate of step `step` (from 0): linear warm-up, then cosine to 0 at `train.steps`."""
    train = config.train
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / (train.steps - train.warmup_steps)
    return train.lr * 0.5 * (1 + math.cos(math.pi * progress))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
