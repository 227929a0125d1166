"""The face that every encoder shows, and the registry through which a new one enters by its name.

Adding an encoder takes one file: subclass `Encoder`, decorate it with ``@register("name")``, import the file in
``encoders/__init__.py`` and list the name under ``model.encoders``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from mmsa_dist.data.batch import MoleculeBatch


class Encoder(nn.Module, ABC):
    """Turns one modality of a batch of B molecules into B vectors of `width` numbers."""

    width: int

    @abstractmethod
    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B, width); rows of molecules that `present` denies are finite but mean nothing."""

    @abstractmethod
    def present(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B,) bool: the molecules that have this modality."""


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
