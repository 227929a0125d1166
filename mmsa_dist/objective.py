"""The training objective: the weighted sum of named losses of the model's outputs.

B molecules, C width of u, D width of g, F bits or descriptors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsa_dist.config.schema import Loss
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.encoders.base import AtomEncoder, without_statistics
from mmsa_dist.losses.averaging import mean_of_present
from mmsa_dist.losses.contrast import contrast_loss
from mmsa_dist.losses.descriptor import DescriptorLoss, DescriptorScale
from mmsa_dist.losses.fingerprint import FingerprintLoss, circular_fingerprint
from mmsa_dist.losses.masked_atom import MaskedAtomLoss
from mmsa_dist.losses.memory import memory_loss
from mmsa_dist.losses.reconstruct import reconstruct_loss
from mmsa_dist.model import MMSAModel, ModelOutput
from mmsa_dist.structure.sources import NeighbourSource


@dataclass(frozen=True)
class ForwardPass:
    """The inputs of the losses of a micro-batch."""

    model: MMSAModel
    batch: MoleculeBatch
    """B molecules."""
    output: ModelOutput
    """Of the model for them."""
    generator: torch.Generator
    """CPU generator, in the same state on every rank."""


class LossTerm(nn.Module, ABC):
    """One of the losses, with the heads that it trains.

    Args:
        options: section ``loss`` of the configuration.
    """

    def __init__(self, options: Loss) -> None:
        super().__init__()
        self.options = options

    @abstractmethod
    def forward(self, made: ForwardPass) -> Tensor:
        """Returns the unweighted loss, (), to be averaged over ranks (collective)."""


class _Contrast(LossTerm):
    def forward(self, made: ForwardPass) -> Tensor:
        fusion = made.output.fusion
        return contrast_loss(fusion.codes, fusion.present, self.options.temperature)


class _Reconstruct(LossTerm):
    def forward(self, made: ForwardPass) -> Tensor:
        fusion = made.output.fusion
        return reconstruct_loss(
            fusion.projected,
            fusion.self_reconstruction,
            fusion.cross_reconstruction,
            fusion.present,
            fusion.cross_present,
        )


class _Memory(LossTerm):
    def forward(self, made: ForwardPass) -> Tensor:
        structure, has_any_B = made.output.structure, made.output.fusion.has_any_B
        return memory_loss(structure.g_BD, structure.readout_BD, self.options.temperature, has_any_B)


class _Atom(LossTerm):
    def __init__(self, options: Loss, model: MMSAModel) -> None:
        super().__init__(options)
        self.masked = MaskedAtomLoss(_atom_encoder(model, options).atom_width, mask_rate=options.mask_rate)

    def forward(self, made: ForwardPass) -> Tensor:
        encoder = _atom_encoder(made.model, self.options)
        # Inference has no masked atoms, so batch norm must not collect statistics of them.
        with without_statistics(encoder):
            loss: Tensor = self.masked(made.batch, encoder.encode_atoms, made.generator)
        return loss


class _Prediction(LossTerm):
    """The mean of the same loss of u and of g, each with its own head.

    Args:
        head: makes the head from the width of its vectors; called with vectors and targets, it returns the loss of
            each molecule, (B,).
        target: returns the targets of a batch, (B, F).
    """

    def __init__(
        self,
        options: Loss,
        model: MMSAModel,
        head: Callable[[int], nn.Module],
        target: Callable[[MoleculeBatch], Tensor],
    ) -> None:
        super().__init__(options)
        self.of_u, self.of_g, self._target = head(model.fusion.code), head(model.structure.width), target

    def forward(self, made: ForwardPass) -> Tensor:
        target_BF = self._target(made.batch)
        of_u_B = self.of_u(made.output.fusion.unified_BC, target_BF)
        of_g_B = self.of_g(made.output.structure.g_BD, target_BF)
        return mean_of_present((of_u_B + of_g_B) / 2, made.output.fusion.has_any_B)


def _fingerprint(options: Loss, model: MMSAModel) -> LossTerm:
    bits = options.fingerprint_bits
    return _Prediction(options, model, partial(FingerprintLoss, bits=bits), partial(circular_fingerprint, bits=bits))


def _descriptor(options: Loss, model: MMSAModel, scale: DescriptorScale | None) -> LossTerm:
    if scale is None or len(scale.mean_F) == 0:
        raise ValueError(
            f"loss.descriptor={options.descriptor} needs shards with descriptors; prepare them with "
            "prepare.descriptors=true, or set loss.descriptor=0"
        )
    return _Prediction(options, model, partial(DescriptorLoss, scale=scale), lambda batch: batch.descriptors_BF)


class ObjectiveOutput(NamedTuple):
    """The loss of a micro-batch; a tuple because DeepSpeed's stage 3 finds tensors only in tuples and dicts."""

    total: Tensor
    """() the weighted sum, to be differentiated."""
    losses: dict[str, Tensor]
    """() each, by name, unweighted and detached; those of weight 0 are left out."""
    model: ModelOutput


class Objective(nn.Module):
    """The weighted sum of the losses whose weight in section ``loss`` is above 0."""

    def __init__(self, model: MMSAModel, loss: Loss, descriptors: DescriptorScale | None = None) -> None:
        """Builds the losses.

        Args:
            model: what is trained.
            loss: weights and options of the losses.
            descriptors: scale of the descriptors in the shards; needed if `loss.descriptor` is above 0.

        Raises:
            ValueError: `loss.atom` is above 0 without an `AtomEncoder`, or `loss.descriptor` without descriptors.
        """
        super().__init__()
        self.model = model
        terms: dict[str, Callable[[], LossTerm]] = {
            "contrast": lambda: _Contrast(loss),
            "reconstruct": lambda: _Reconstruct(loss),
            "memory": lambda: _Memory(loss),
            "atom": lambda: _Atom(loss, model),
            "fingerprint": lambda: _fingerprint(loss, model),
            "descriptor": lambda: _descriptor(loss, model, descriptors),
        }
        self._weights: dict[str, float] = {name: getattr(loss, name) for name in terms if getattr(loss, name) > 0}
        self.terms = nn.ModuleDict({name: terms[name]() for name in self._weights})

    def forward(self, batch: MoleculeBatch, neighbours: NeighbourSource, generator: torch.Generator) -> ObjectiveOutput:
        """Returns the losses of B molecules (collective: negatives come from all ranks).

        Args:
            batch: B molecules, as many on every rank.
            neighbours: where hyperedges come from.
            generator: CPU generator, in the same state on every rank.
        """
        made = ForwardPass(self.model, batch, self.model(batch, neighbours, generator), generator)
        losses: dict[str, Tensor] = {name: term(made) for name, term in self.terms.items()}
        return ObjectiveOutput(
            total=torch.stack([self._weights[name] * loss for name, loss in losses.items()]).sum(),
            losses={name: loss.detach() for name, loss in losses.items()},
            model=made.output,
        )


def _atom_encoder(model: MMSAModel, options: Loss) -> AtomEncoder:
    """Returns the first encoder that has a vector for each atom."""
    for encoder in model.encoders.values():
        if isinstance(encoder, AtomEncoder):
            return encoder
    raise ValueError(
        f"loss.atom={options.atom} needs an encoder with atom vectors, such as gin, in model.encoders; add one, or "
        "set loss.atom=0"
    )
