"""The next batch on its way to the device while the last one is being worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from mmsa_dist.data.batch import MoleculeBatch


@dataclass(frozen=True)
class _Fetched:
    """What the source of batches answered: a batch, or the error that it raised in its place."""

    batch: MoleculeBatch | None
    error: Exception | None


class Prefetched(Iterator[MoleculeBatch]):
    """Batches on `device`, in their order; `look_ahead` begins with the next one before it is asked for.

    On CUDA a batch travels on a stream of its own, beside the kernels of the step before; the step waits for it where
    it begins to compute. One batch is held at most. An error of the source, or its end, is told when the batch that
    it stands for is asked for, not before.

    Args:
        batches: for CUDA in pinned memory, else the host waits for the way to the device.
        device: where they go; on a CPU they stay what they are.
    """

    def __init__(self, batches: Iterable[MoleculeBatch], device: torch.device | str = "cpu") -> None:
        self._batches = batches
        self._source: Iterator[MoleculeBatch] | None = None
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._next: _Fetched | None = None

    def look_ahead(self) -> None:
        """Fetches the next batch and sends it on its way, unless one is held already."""
        if self._next is None:
            self._next = self._fetch()

    def __next__(self) -> MoleculeBatch:
        """Returns the batch that comes next, whether or not it was fetched ahead."""
        self.look_ahead()
        fetched, self._next = self._next, None
        assert fetched is not None
        if fetched.batch is None:
            assert fetched.error is not None
            raise fetched.error
        if self._stream is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._stream)
            fetched.batch.record_stream(computing)
        return fetched.batch

    def _fetch(self) -> _Fetched:
        try:
            if self._source is None:
                self._source = iter(self._batches)
            batch = next(self._source)
        except Exception as error:
            return _Fetched(None, error)
        with torch.cuda.stream(self._stream):  # nothing where there is none
            return _Fetched(batch.to(self._device), None)
