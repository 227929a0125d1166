"""A second stream of the GPU, so that what waits for memory runs beside what multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


class Beside:
    """Work on the second stream of a device; on a CPU, and where it is not worth it, on the current one.

    To begin and to join costs the host a good tenth of a millisecond, so that little work is done sooner on one stream.

    What is begun sees all that the current stream was given before. What it reads and writes must live until `join`.
    """

    def __init__(self, device: torch.device, *, worth_it: bool) -> None:
        self._stream = _second_stream(device.index) if worth_it and device.type == "cuda" else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is launched in this block goes to the second stream."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self, *made: Tensor) -> None:
        """Lets the current stream wait for all that was begun, and go on with tensors that were made there."""
        if self._stream is not None:
            current = torch.cuda.current_stream()
            current.wait_stream(self._stream)
            for tensor in made:
                tensor.record_stream(current)


@cache
def _second_stream(device: int | None) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
