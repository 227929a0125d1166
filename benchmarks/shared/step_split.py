"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PARTS = (
    *("data", "encoders", "structure", "neighbours", "optimizer"),
    *("messages of gradients", "messages of neighbours", "messages of losses and the rest", "waiting for other ranks"),
)
_COLLECTIVES = (
    *("all_gather", "all_reduce", "all_to_all_single", "all_gather_into_tensor"),
    *("reduce", "reduce_scatter_tensor", "broadcast"),
)


class Split:
    """Timers around the parts of a step; they cost time themselves.

    A part's time is without that of the parts within it. Before every message of a rank all ranks meet, so that the
    time of the message is told from that of waiting for the slowest.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._within = [0.0]
        """Seconds of the parts within each open part."""
        self._arrivals: list[tuple[float, float]] = []
        """When gradients reached an encoder's end in this backward pass, and the messages' seconds by then."""

    def add(self, part: str, seconds: float) -> None:
        """Counts time to a part."""
        self._seconds[part] += seconds

    @contextmanager
    def of(self, engine: Any, neighbours: Any) -> Iterator[None]:
        """Timers around the parts while the block runs."""
        model = engine.module.model
        wrapped: list[tuple[Any, str, Callable[..., Any]]] = [
            (engine, "backward", self._backward(engine.backward)),
            (engine, "step", self._timed("optimizer", engine.step)),
            (neighbours, "find", self._timed("neighbours", neighbours.find)),
            (neighbours, "observe", self._timed("neighbours", neighbours.observe)),
            (model.structure, "forward", self._timed("structure", model.structure.forward)),
            *((encoder, "forward", self._encoder(encoder.forward)) for encoder in model.encoders.values()),
            *((dist, name, self._message(getattr(dist, name))) for name in _COLLECTIVES if _many()),
        ]
        before = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in wrapped]
        for owner, name, timed in wrapped:
            setattr(owner, name, timed)
        try:
            yield
        finally:
            for owner, name, was in before:
                if was is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, was)

    def seconds(self, steps: int) -> dict[str, float]:
        """Seconds a step by part; what no timer saw is `losses and the rest`."""
        parts = {name: self._seconds[name] / steps for name in PARTS if self._seconds[name]}
        return {**parts, "losses and the rest": self._seconds["step"] / steps - sum(parts.values())}

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        self._synchronize()
        self._open.append(name)
        self._within.append(0.0)
        begin = time.perf_counter()
        yield
        self._synchronize()
        whole = time.perf_counter() - begin
        self._open.pop()
        self.add(name, whole - self._within.pop())
        self._within[-1] += whole

    def _timed(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*words: Any, **named: Any) -> Any:
            with self._part(name):
                return inner(*words, **named)

        return run

    def _message(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*words: Any, **named: Any) -> Any:
            of = "losses and the rest"
            if "neighbours" in self._open:
                of = "neighbours"
            elif "optimizer" in self._open or self._arrivals:
                of = "gradients"
            with self._part("waiting for other ranks"):
                dist.barrier()
            with self._part(f"messages of {of}"):
                return inner(*words, **named)

        return run

    def _encoder(self, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watch_gradient(*_: object) -> None:
            self._synchronize()
            self._arrivals.append((time.perf_counter(), self._within[-1]))

        def run(*words: Any, **named: Any) -> Tensor:
            with self._part("encoders"):
                feature = inner(*words, **named)
            if feature.requires_grad:
                feature.register_hook(watch_gradient)
            return feature

        return run

    def _backward(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*words: Any, **named: Any) -> Any:
            with self._part("backward"):
                result = inner(*words, **named)
                self._synchronize()
                # What was computed last comes first in a backward pass: the heads, and then one encoder by one.
                begin, messages_s = self._arrivals[0]
                self.add("encoders", time.perf_counter() - begin - (self._within[-1] - messages_s))
            self._arrivals.clear()
            return result

        return run

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _many() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
