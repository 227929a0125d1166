"""The model: encoders of the modalities, their common space, and structure awareness on top.

B molecules, C width of codes, D width of the structure-aware embedding, R rows of a reference bank.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mmsa_dist.config.schema import Model
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.encoders import Encoder, build_encoder
from mmsa_dist.fusion import Fusion, FusionOutput
from mmsa_dist.structure.layer import StructureLayer, StructureOutput
from mmsa_dist.structure.sources import NeighbourSource, NoNeighbours, TableNeighbours


class ModelOutput(NamedTuple):
    """What the model makes of B molecules."""

    fusion: FusionOutput
    """Codes c_m by modality and the unified embedding u."""
    structure: StructureOutput
    """Structure-aware embedding g, its read-out from the anchors, and the log-sum-exp."""


class MMSAModel(nn.Module):
    """MMSA (Yin et al. 2025, arXiv 2505.05877): modalities to codes c_m to u, neighbours of u to g.

    Raises:
        ValueError: an encoder that is not registered.
    """

    def __init__(self, options: Model) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: build_encoder(name, options.encoder_options(name)) for name in options.encoders}
        )
        widths = {name: self.encoder(name).width for name in self.encoders}
        self.fusion = Fusion(widths, options.projection, options.code)
        structure = options.structure
        self.structure = StructureLayer(
            code=options.code,
            width=structure.width,
            anchors=structure.anchors,
            similarity=structure.similarity,
            temperature=structure.temperature,
            normalization=structure.normalization,
        )
        self._k = structure.k
        self._isolated = structure.hyperedges == "own"

    def encoder(self, name: str) -> Encoder:
        """The encoder of that name."""
        return cast(Encoder, self.encoders[name])

    def fuse(self, batch: MoleculeBatch, generator: torch.Generator | None = None) -> FusionOutput:
        """Encodes each modality and joins them; `generator` draws who reconstructs whom, None goes round."""
        features = {name: encoder(batch) for name, encoder in self.encoders.items()}
        present = {name: self.encoder(name).present(batch) for name in self.encoders}
        permutation = None if generator is None else self.fusion.draw_permutation(generator)
        return self.fusion(features, present, permutation)

    def forward(
        self, batch: MoleculeBatch, neighbours: NeighbourSource, generator: torch.Generator | None = None
    ) -> ModelOutput:
        """Returns the outputs of B molecules (collective where `neighbours` is).

        Args:
            batch: B molecules.
            neighbours: finds the K neighbours of each among all molecules or in the batch.
            generator: CPU generator in the same state on every rank.
        """
        fusion = self.fuse(batch, generator)
        # Distances and ids are not for 8 bits of mantissa, and autocast refuses the float16 of the bank.
        with torch.autocast(batch.device.type, enabled=False):
            found = neighbours.find(fusion.unified_BC.detach(), batch.index_B)
            structure = self.structure(fusion.unified_BC, found, isolated=self._isolated)
            return ModelOutput(fusion=fusion, structure=structure)

    @torch.no_grad()
    def embed(self, batch: MoleculeBatch, reference_RC: Tensor | None = None) -> dict[str, Tensor]:
        """Returns vectors that depend on nothing else in the batch; the model must be in eval mode.

        Args:
            batch: B molecules.
            reference_RC: (R, C) unified embeddings among which neighbours are sought; None makes a molecule's
                hyperedge itself alone.

        Returns:
            ``structure`` (B, D) g, ``unified`` (B, C) u, and under the name of each encoder (B, C) its code, NaN
            where the molecule lacks that modality.
        """
        if self.training:
            raise ValueError("embed needs the model in eval mode, or batch norm would mix molecules; call .eval()")
        fusion = self.fuse(batch)
        source = NoNeighbours() if reference_RC is None else TableNeighbours(reference_RC, self._k)
        found = source.find(fusion.unified_BC, batch.index_B)
        structure = self.structure(fusion.unified_BC, found, isolated=True)
        codes = {
            name: code_BC.masked_fill(~fusion.present[name][:, None], torch.nan)
            for name, code_BC in fusion.codes.items()
        }
        return {"structure": structure.g_BD, "unified": fusion.unified_BC, **codes}
