"""Where vectors are computed, and how precisely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from mmsa_dist.runtime.threads import computing_threads


def device_of(asked: str | torch.device | None) -> torch.device:
    """Returns the device that is asked for, a GPU by its number; None takes a GPU where there is one.

    Raises:
        ValueError: there is no such device here.
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
    """Computes in plain float32: no TF32, no autocast, no choice of algorithm by timing."""
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
    """Gives, for the while, how many batches are to be computed at a time, each by a thread.

    A GPU computes one. On a CPU each of PyTorch's threads takes a batch of its own: the operators of a batch are so
    short that threads within them mostly wait for each other.

    Args:
        device: that computes.
        most: batches at a time that there are, or that memory allows; with one, all threads work within it.
    """
    number = min(most, torch.get_num_threads()) if device.type == "cpu" else 1
    # What holds for the whole process is set here: threads that come and go would take it from each other.
    with exact_float32(device), computing_threads(1) if number > 1 else nullcontext():
        yield number
