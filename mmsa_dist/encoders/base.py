"""The face that every encoder shows, and the registry through which a new one enters by its name.

Adding an encoder takes one file: subclass `Encoder`, decorate it with ``@register("name")``, import the file in
``encoders/__init__.py`` and list the name under ``model.encoders``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from mmsa_dist.data.batch import MoleculeBatch


class Encoder(nn.Module, ABC):
    """Turns one modality of a batch of B molecules into B vectors of `width` numbers.

    Every rank calls the same modules in the same order, whatever its batch holds, and reads a parameter only in the
    forward pass of the module that owns it: ZeRO 3 gathers parameters when their module is called.
    """

    width: int
    """Of the vectors that `forward` returns."""
    recompute: Literal["no", "yes", "reentrant"] = "no"
    """Whether `block` keeps only its inputs and computes its inside again in the backward pass; ``reentrant`` does so
    by a backward pass within, which ZeRO 3 needs to gather parameters for both passes."""

    def block(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Returns ``function(*inputs)``: a part of the encoder that may be computed twice to save its activations.

        Random numbers are drawn alike both times, and running statistics are updated the first time only.

        Args:
            function: a module, or a method that calls modules; it must not change its inputs.
            inputs: tensors, and anything else.
        """
        if self.recompute == "no" or not torch.is_grad_enabled():
            return function(*inputs)
        passes = partial(_passes, self)

        def run(*inputs: Any) -> Tensor:
            # The first pass is without a graph.
            with without_statistics(self) if torch.is_grad_enabled() else nullcontext():
                return function(*inputs)

        result: Tensor = (
            checkpoint(function, *inputs, use_reentrant=False, context_fn=passes)
            if self.recompute == "yes"
            else checkpoint(run, *inputs, use_reentrant=True)
        )
        return result

    @abstractmethod
    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B, width); rows of molecules that `present` denies are finite but mean nothing."""

    @abstractmethod
    def present(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B,) bool: the molecules that have this modality."""


def _passes(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), without_statistics(module)


@contextmanager
def without_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms of `module` leave their running statistics and their count as they are."""
    norms = [norm for norm in module.modules() if isinstance(norm, _NormBase)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


ENCODERS: dict[str, type[Encoder]] = {}
_E = TypeVar("_E", bound=type[Encoder])


def register(name: str) -> Callable[[_E], _E]:
    """Registers an encoder class under `name`.

    Raises:
        ValueError: the name is taken.
    """

    def add(cls: _E) -> _E:
        if name in ENCODERS:
            raise ValueError(f"encoder name {name!r} is taken by {ENCODERS[name].__qualname__}; choose another")
        ENCODERS[name] = cls
        return cls

    return add


def build_encoder(name: str, options: dict[str, object]) -> Encoder:
    """Builds the encoder registered under `name` with its keyword `options`.

    Raises:
        ValueError: no encoder has that name.
    """
    if name not in ENCODERS:
        raise ValueError(f"model.encoders names {name!r}, which is not registered; known: {sorted(ENCODERS)}")
    return ENCODERS[name](**options)
