"""Checks of the dtypes of arguments."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def check_dtypes(*, indices: Mapping[str, Tensor], values: Mapping[str, Tensor | None]) -> None:
    """Checks that indices are int32 or int64, and values floating point.

    Args:
        indices: by the names of the arguments.
        values: likewise; None is passed over.

    Raises:
        TypeError: one of them has another dtype.
    """
    for name, value in values.items():
        if value is not None and not value.is_floating_point():
            raise TypeError(f"{name}: got {value.dtype}, expected a floating point dtype")
    for name, index in indices.items():
        if index.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name}: got {index.dtype}, expected torch.int32 or torch.int64")
