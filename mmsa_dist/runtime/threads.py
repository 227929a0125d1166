"""The number of PyTorch's threads, set temporarily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def computing_threads(number: int) -> Iterator[None]:
    """Sets PyTorch's intra-op threads to `number` within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
