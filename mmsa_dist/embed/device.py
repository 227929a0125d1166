"""Device and numerical precision of inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from mmsa_dist.runtime.threads import computing_threads


def device_of(asked: str | torch.device | None) -> torch.device:
    """Returns the requested device, a GPU with its index; None selects a GPU if there is one.

    Raises:
        ValueError: this machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(asked or ("cuda" if gpus else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={asked!r} is no device that torch knows; 'cpu' and 'cuda:1' are") from error
    if device.type != "cuda":
        return device
    number = device.index if device.index is not None else torch.cuda.current_device() if gpus else 0
    if number >= gpus:
        raise ValueError(f"device={asked!r}: torch sees {gpus} GPUs here; leave device out for what there is")
    return torch.device("cuda", number)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Enforces plain float32 within the context: no TF32, autocast or cuDNN autotuning."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def computing_side_by_side(device: torch.device, most: int) -> Iterator[int]:
    """Yields how many batches to compute in parallel, one thread each, for the duration of the context.

    A GPU computes one at a time. On a CPU each of PyTorch's threads takes a batch of its own: the operators are so
    short that threads within them mostly wait for each other.

    Args:
        device: computes the batches.
        most: upper limit on parallel batches; with one, all threads work within it.
    """
    number = min(most, torch.get_num_threads()) if device.type == "cpu" else 1
    # Process-wide settings are made here: threads that start and end would overwrite each other's.
    with exact_float32(device), computing_threads(1) if number > 1 else nullcontext():
        yield number
