"""The interface of all encoders, and the registry that finds them by name.

Adding an encoder takes one file: subclass `Encoder`, declare what it `reads`, decorate it with ``@register("name")``,
import the file in ``encoders/__init__.py`` and list the name under ``model.encoders``. The rest of the package
uses only what the class declares; fine-tuning alone, whose protocol is that of GIN, names an encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from mmsa_dist.data.batch import MoleculeBatch

Modality = Literal["graph", "coordinates", "picture"]
"""What a batch may hold of a molecule: its atoms and bonds, a conformer, a picture."""


class Encoder(nn.Module, ABC):
    """Turns one modality of a batch of B molecules into B vectors of `width` numbers.

    Every rank must call the same modules in the same order, whatever its batch holds, and read a parameter only in the
    forward pass of the module that owns it: ZeRO 3 gathers parameters when their module is called.
    """

    reads: ClassVar[frozenset[Modality]]
    """The modalities that `forward` needs. Pictures are drawn, and conformers made from SMILES, only if an encoder
    reads them; atoms and bonds are in every batch, so an encoder of coordinates need not add ``graph``."""
    width: int
    """Of the vectors that `forward` returns."""
    _reentrant: bool | None = None
    """How `block` recomputes; None where it keeps all activations."""

    def checkpoint_activations(self, *, reentrant: bool) -> None:
        """Makes `block` keep only its inputs in training and recompute its activations in the backward pass.

        Args:
            reentrant: recompute in a backward pass of its own. ZeRO 3 needs this to gather parameters for both passes.
        """
        self._reentrant = reentrant

    def block(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Returns ``function(*inputs)``, a part of the encoder that may be recomputed in the backward pass.

        Both passes draw the same random numbers, and only the first updates running statistics. In evaluation mode a
        block is computed once.

        Args:
            function: a module, or a method that calls modules; it must not change its inputs.
            inputs: tensors and any other values.
        """
        if self._reentrant is None or not self.training or not torch.is_grad_enabled():
            return function(*inputs)
        contexts = partial(_checkpoint_contexts, self)

        def run(*inputs: Any) -> Tensor:
            # The first pass builds no graph.
            with without_statistics(self) if torch.is_grad_enabled() else nullcontext():
                return function(*inputs)

        result: Tensor = (
            checkpoint(run, *inputs, use_reentrant=True)
            if self._reentrant
            else checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)
        )
        return result

    @abstractmethod
    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B, width); the rows of molecules without the modality are finite but meaningless."""

    @abstractmethod
    def present(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B,) bool: the molecules that have this modality."""


class AtomEncoder(Encoder):
    """An encoder with a vector for each atom, which the masked-atom loss needs."""

    atom_width: int
    """D, of the vectors that `encode_atoms` returns."""

    @abstractmethod
    def encode_atoms(self, batch: MoleculeBatch, atoms_A9: Tensor) -> Tensor:
        """Returns (A, D): atom vectors before pooling.

        Args:
            batch: provides the bonds.
            atoms_A9: (A, 9) uint8: `batch.atoms_A9`, or a copy in which some atomic numbers are
                `mmsa_dist.encoders.gin.MASK_TOKEN`.
        """


def _checkpoint_contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), without_statistics(module)


@contextmanager
def without_statistics(module: nn.Module) -> Iterator[None]:
    """Freezes the running statistics and batch counts of the batch norms of `module` within the context."""
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
        ValueError: the name is taken, or the class does not declare what it reads.
    """

    def add(cls: _E) -> _E:
        if name in ENCODERS:
            raise ValueError(f"encoder name {name!r} is taken by {ENCODERS[name].__qualname__}; choose another")
        reads, known = getattr(cls, "reads", None), get_args(Modality)
        if not isinstance(reads, set | frozenset) or not reads or not reads.issubset(known):
            raise ValueError(
                f"encoder {name!r} must declare what it reads: {cls.__qualname__}.reads is {reads!r}; make it a set of "
                f"{', '.join(known)}, such as reads = frozenset({{'picture'}})"
            )
        ENCODERS[name] = cls
        return cls

    return add


def encoder_class(name: str) -> type[Encoder]:
    """Returns the class registered under `name`.

    Raises:
        ValueError: no encoder has that name.
    """
    if name not in ENCODERS:
        raise ValueError(f"model.encoders names {name!r}, which is not registered; known: {sorted(ENCODERS)}")
    return ENCODERS[name]


def modalities_of(names: Iterable[str]) -> frozenset[Modality]:
    """Returns all modalities that the encoders registered under `names` read; raises as `encoder_class`."""
    return frozenset(modality for name in names for modality in encoder_class(name).reads)


def build_encoder(name: str, options: dict[str, object]) -> Encoder:
    """Builds the encoder registered under `name` with keyword arguments `options`; raises as `encoder_class`."""
    return encoder_class(name)(**options)
