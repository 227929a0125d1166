"""The model: encoders of the modalities, their common space, and structure awareness on top.

B molecules, C width of codes, D width of the structure-aware embedding, R rows of a reference bank.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mmsa_dist.config.schema import Config, Model
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.encoders import Encoder, build_encoder, modalities_of
from mmsa_dist.fusion import Fusion, FusionOutput, has_any, mean_of_present
from mmsa_dist.structure.layer import StructureLayer, StructureOutput
from mmsa_dist.structure.sources import NeighbourSource, NoNeighbours, TableNeighbours


def picture_size(config: Config) -> int | None:
    """Returns the side of a run's pictures in pixels; None if no encoder reads them.

    Raises:
        ValueError: an encoder is not registered.
    """
    return config.data.picture_size if "picture" in modalities_of(config.model.encoders) else None


class ModelOutput(NamedTuple):
    """Output of the model for B molecules."""

    fusion: FusionOutput
    """Codes c_m by modality and the unified embedding u."""
    structure: StructureOutput
    """Structure-aware embedding g, its read-out from the anchors, and the log-sum-exp."""


class MMSAModel(nn.Module):
    """MMSA (Yin et al. 2025, arXiv 2505.05877): from modalities to codes c_m to u, and with its neighbours to g.

    Raises:
        ValueError: an encoder is not registered.
    """

    def __init__(self, options: Model) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: build_encoder(name, options.encoder_options(name)) for name in options.encoders}
        )
        widths = {name: self.encoder(name).width for name in self.encoders}
        self.fusion = Fusion(widths, options.projection, options.code)
        self.structure = StructureLayer(options.code, options.structure)
        self._k = options.structure.k
        self._isolated = options.structure.hyperedges == "own"

    def encoder(self, name: str) -> Encoder:
        """Returns the encoder of that name."""
        return cast(Encoder, self.encoders[name])

    def fuse(self, batch: MoleculeBatch, generator: torch.Generator | None = None) -> FusionOutput:
        """Encodes and fuses the modalities; `generator` draws the permutation of `Fusion`, None takes its default."""
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
        # A molecule without an embedding finds no neighbours and is nobody's.
        searched_BC = fusion.unified_BC.detach().where(fusion.has_any_B[:, None], torch.nan)
        # Distances and ids need more than 8 bits of mantissa, and autocast refuses the float16 of the bank.
        with torch.autocast(batch.device.type, enabled=False):
            found = neighbours.find(searched_BC, batch.index_B)
            structure = self.structure(fusion.unified_BC, found, isolated=self._isolated)
            return ModelOutput(fusion=fusion, structure=structure)

    @torch.no_grad()
    def embed(self, batch: MoleculeBatch, view: str, neighbours: NeighbourSource) -> tuple[Tensor, Tensor]:
        """Returns vectors that do not depend on the rest of the batch; the model must be in eval mode.

        Only what the view needs is computed: one encoder for its code, all of them for the others.

        Args:
            batch: B molecules.
            view: ``structure`` (g), ``unified`` (u), or the name of an encoder (its code).
            neighbours: where neighbours are searched for ``structure``, independently for each molecule.

        Returns:
            (B, D) vectors, and (B,) bool: the molecules that have a modality which the view uses. Other rows are
            finite but meaningless.
        """
        if self.training:
            raise ValueError("embed needs the model in eval mode, or batch norm would mix molecules; call .eval()")
        names = [view] if view in self.encoders else list(self.encoders)
        present = {name: self.encoder(name).present(batch) for name in names}
        codes = self.fusion.codes_of({name: self.encoders[name](batch) for name in names})
        if view in codes:
            return codes[view], present[view]
        has_any_B = has_any(present)
        unified_BC = mean_of_present(codes, present)
        if view == "unified":
            return unified_BC, has_any_B
        found = neighbours.find(unified_BC, batch.index_B)
        return self.structure(unified_BC, found, isolated=True).g_BD, has_any_B

    def reference(self, rows_RC: Tensor | None) -> NeighbourSource:
        """Returns the source of neighbours for `embed`: the reference rows, or no neighbours if None.

        Args:
            rows_RC: (R, C) unified embeddings of the reference molecules, on the device of the batches.
        """
        return NoNeighbours() if rows_RC is None else TableNeighbours(rows_RC, self._k)
