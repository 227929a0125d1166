"""What is minimised: the weighted sum of the losses over the outputs of the model, each by its name.

B molecules, C width of u, D width of g, F bits or descriptors.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mmsa_dist.config.schema import Loss
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.encoders.base import without_statistics
from mmsa_dist.encoders.gin import GIN
from mmsa_dist.fusion import FusionOutput
from mmsa_dist.losses.contrast import contrast_loss
from mmsa_dist.losses.descriptor import DescriptorLoss, DescriptorScale
from mmsa_dist.losses.fingerprint import FingerprintLoss, circular_fingerprint
from mmsa_dist.losses.masked_atom import MaskedAtomLoss
from mmsa_dist.losses.memory import memory_loss
from mmsa_dist.losses.reconstruct import reconstruct_loss
from mmsa_dist.model import MMSAModel, ModelOutput
from mmsa_dist.structure.sources import NeighbourSource


class ObjectiveOutput(NamedTuple):
    """The loss of a micro-batch; a tuple because DeepSpeed's stage 3 finds tensors in tuples and dicts alone."""

    total: Tensor
    """() the weighted sum, to be differentiated."""
    losses: dict[str, Tensor]
    """() each by name, unweighted and detached; those of weight 0 are left out."""
    model: ModelOutput


class Objective(nn.Module):
    """L = λc L_contrast + λr L_reconstruct + λm L_memory + λa L_atom + λf L_fingerprint + λd L_descriptor.

    The last two are the mean of that of u and that of g, each through a head of its own.
    """

    def __init__(self, model: MMSAModel, loss: Loss, descriptors: DescriptorScale | None = None) -> None:
        """Joins model and losses.

        Args:
            model: what is trained.
            loss: weights and options of the losses.
            descriptors: scale of the descriptors in the shards; needed where `loss.descriptor` is above 0.

        Raises:
            ValueError: `loss.atom` is above 0 and the model has no encoder ``gin``, or there are no descriptors.
        """
        super().__init__()
        self.model = model
        self._loss = loss
        if loss.atom > 0:
            if "gin" not in model.encoders:
                raise ValueError(f"loss.atom={loss.atom} needs gin among model.encoders; add it, or set loss.atom=0")
            self.masked_atom = MaskedAtomLoss(cast(GIN, model.encoder("gin")).atom_width, mask_rate=loss.mask_rate)
        if loss.fingerprint > 0:
            self.fingerprint_of_u = FingerprintLoss(model.fusion.code, loss.fingerprint_bits)
            self.fingerprint_of_g = FingerprintLoss(model.structure.width, loss.fingerprint_bits)
        if loss.descriptor > 0:
            if descriptors is None or len(descriptors.mean_F) == 0:
                raise ValueError(
                    f"loss.descriptor={loss.descriptor} needs shards with descriptors; prepare them with "
                    "prepare.descriptors=true, or set loss.descriptor=0"
                )
            self.descriptor_of_u = DescriptorLoss(model.fusion.code, descriptors)
            self.descriptor_of_g = DescriptorLoss(model.structure.width, descriptors)

    def forward(self, batch: MoleculeBatch, neighbours: NeighbourSource, generator: torch.Generator) -> ObjectiveOutput:
        """Returns the losses of B molecules (collective: negatives come from all ranks).

        Args:
            batch: B molecules, as many on every rank.
            neighbours: where hyperedges come from.
            generator: CPU generator, in the same state on every rank.
        """
        output = self.model(batch, neighbours, generator)
        weights = self._loss
        weighted: dict[str, tuple[float, Tensor]] = {}
        if weights.contrast > 0:
            value = contrast_loss(output.fusion.codes, output.fusion.present, weights.temperature)
            weighted["contrast"] = (weights.contrast, value)
        if weights.reconstruct > 0:
            weighted["reconstruct"] = (weights.reconstruct, _reconstruct(output.fusion))
        if weights.memory > 0:
            value = memory_loss(output.structure.g_BD, output.structure.readout_BD, weights.temperature)
            weighted["memory"] = (weights.memory, value)
        if weights.atom > 0:
            gin = cast(GIN, self.model.encoder("gin"))
            # Inference sees no masks, so that batch norm must not learn what molecules look like with them.
            with without_statistics(gin):
                weighted["atom"] = (weights.atom, self.masked_atom(batch, gin.encode_atoms, generator))
        if weights.fingerprint > 0:
            fingerprint_BF = circular_fingerprint(batch, weights.fingerprint_bits)
            of_u = self.fingerprint_of_u(output.fusion.unified_BC, fingerprint_BF)
            of_g = self.fingerprint_of_g(output.structure.g_BD, fingerprint_BF)
            weighted["fingerprint"] = (weights.fingerprint, (of_u + of_g) / 2)
        if weights.descriptor > 0:
            of_u = self.descriptor_of_u(output.fusion.unified_BC, batch.descriptors_BF)
            of_g = self.descriptor_of_g(output.structure.g_BD, batch.descriptors_BF)
            weighted["descriptor"] = (weights.descriptor, (of_u + of_g) / 2)
        return ObjectiveOutput(
            total=torch.stack([weight * value for weight, value in weighted.values()]).sum(),
            losses={name: value.detach() for name, (_, value) in weighted.items()},
            model=output,
        )


def _reconstruct(fusion: FusionOutput) -> Tensor:
    return reconstruct_loss(
        fusion.projected,
        fusion.self_reconstruction,
        fusion.cross_reconstruction,
        fusion.present,
        fusion.cross_present,
    )
