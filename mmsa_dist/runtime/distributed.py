"""Collectives that also work in a single process, so that callers need not check for a process group.

W ranks (the world), B rows of this rank, G = W·B rows of all ranks, D width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase


def is_distributed() -> bool:
    """Returns whether a process group of more than one rank is initialized."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Returns the number of ranks W; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Returns the number of this rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


class RankLost(OSError):
    """The ranks could not connect, or one of them was lost; the message says what to do."""


@contextmanager
def named_when_lost() -> Iterator[None]:
    """Turns errors of the process group about lost or unreachable ranks, and no others, into `RankLost`."""
    try:
        yield
    except RuntimeError as error:  # gloo's errors have no class of their own
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        if "EADDRINUSE" in str(error):
            raise RankLost(
                f"port {os.environ.get('MASTER_PORT')} is in use on this machine, perhaps by another run; choose "
                "another with deepspeed's --master_port"
            ) from error
        raise RankLost(
            f"another rank was lost, as its own output may explain; rank {rank()} exits ({str(error).strip()}). Start "
            "the same command with --resume to continue from the newest checkpoint"
        ) from error


class _GatherWithGradient(torch.autograd.Function):
    """All-gather whose backward pass sums the gradients of all ranks for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_GD: Tensor) -> Tensor:
        total_GD = grad_GD.contiguous().clone()
        dist.all_reduce(total_GD)
        return total_GD.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradient(x_BD: Tensor) -> Tensor:
    """Concatenates the rows of all ranks, (B, D) -> (W·B, D), in rank order; every rank must hold B rows.

    The backward pass sums over ranks. If each rank's loss is a mean over its own B rows and gradients are
    then averaged over ranks, the result is the gradient of the mean over all W·B rows.
    """
    return _GatherWithGradient.apply(x_BD) if is_distributed() else x_BD


def gather(x_BD: Tensor) -> Tensor:
    """Concatenates the rows of all ranks without a gradient, (B, ...) -> (W·B, ...), in rank order."""
    if not is_distributed():
        return x_BD
    parts = [torch.empty_like(x_BD) for _ in range(world_size())]
    dist.all_gather(parts, x_BD.detach().contiguous())
    return torch.cat(parts)


def all_reduce_mean(value: Tensor) -> Tensor:
    """Returns the mean of `value` over the ranks, without a gradient."""
    if not is_distributed():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def all_ranks_agree(*flags: bool) -> tuple[bool, ...]:
    """Returns which of `flags` hold on every rank, by one small collective."""
    if not is_distributed():
        return flags
    votes = torch.tensor(flags, dtype=torch.int32, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return tuple(bool(vote) for vote in votes.tolist())


def average_statistics(module: torch.nn.Module) -> None:
    """Averages the running statistics of the norms of a module over the ranks.

    No other buffers: the mean of equal numbers over three ranks may differ from them in the last bit.
    """
    if not is_distributed():
        return
    norms = [part for part in module.modules() if isinstance(part, _NormBase)]
    kept = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
    buffers = [statistic for statistic in kept if statistic is not None]
    if not buffers:
        return
    flat = all_reduce_mean(torch.cat([buffer.reshape(-1) for buffer in buffers]))
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
