"""Where vectors are computed, and how precisely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def device_of(asked: str | torch.device | None) -> torch.device:
    """Returns the device that is asked for; None takes a GPU where there is one."""
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


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
