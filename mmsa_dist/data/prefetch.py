"""Copies the next batch to the device while the current one is being processed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from mmsa_dist.data.batch import MoleculeBatch


@dataclass(frozen=True)
class _Fetched:
    """What the source of batches returned: a batch, or the error that it raised instead."""

    batch: MoleculeBatch | None
    error: Exception | None


class Prefetched(Iterator[MoleculeBatch]):
    """Iterates over batches on `device`; `look_ahead` fetches the next one before it is requested.

    On CUDA a batch is copied on a separate stream while the kernels of the previous step run, and the compute stream
    waits for the copy. At most one batch is held. An error of the source, or its end, is raised when the batch in its
    place is requested, not before.

    Args:
        batches: in pinned memory for CUDA; otherwise the copy blocks the host.
        device: where they are copied; nothing is copied on a CPU.
    """

    def __init__(self, batches: Iterable[MoleculeBatch], device: torch.device | str = "cpu") -> None:
        self._batches = batches
        self._source: Iterator[MoleculeBatch] | None = None
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._next: _Fetched | None = None

    def look_ahead(self) -> None:
        """Fetches the next batch and starts its copy, unless one is held already."""
        if self._next is None:
            self._next = self._fetch()

    def __next__(self) -> MoleculeBatch:
        """Returns the next batch, whether or not it was fetched ahead."""
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
        with torch.cuda.stream(self._stream):  # no effect if None
            return _Fetched(batch.to(self._device), None)
