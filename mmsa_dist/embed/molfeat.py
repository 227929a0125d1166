"""The embedder as a molfeat calculator, usable wherever molfeat accepts one.

This module does not import molfeat; only its users need it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.outcome import EmbeddingError
from mmsa_dist.embed.pretrained import PretrainedModel

if TYPE_CHECKING:
    from rdkit.Chem import Mol


class MolfeatCalculator:
    """A calculator for ``molfeat.trans.MoleculeTransformer``.

    Args:
        model: as in `Embedder`.
        options: as in `Embedder`, except `on_error`: molfeat decides how to handle invalid molecules.

    Example:
        >>> from molfeat.trans import MoleculeTransformer  # doctest: +SKIP
        >>> transformer = MoleculeTransformer(MolfeatCalculator("runs/quickstart/model"))  # doctest: +SKIP
        >>> vectors, valid = transformer(["CCO", "not a molecule"], ignore_errors=True)  # doctest: +SKIP
    """

    def __init__(self, model: str | os.PathLike[str] | PretrainedModel, **options: Any) -> None:
        self.embedder = Embedder(model, **options, on_error="nan")

    def __call__(self, mol: str | Mol) -> NDArray[np.float32]:
        """Returns the (D,) float32 vector of one molecule.

        Raises:
            EmbeddingError: the molecule has no vector.
        """
        (vector,) = self.batch_compute([mol])
        if vector is None:
            raise EmbeddingError(f"{mol!r} has no vector: {self.embedder.report_[0].message}")
        return vector

    def batch_compute(self, mols: Sequence[str | Mol | None], **_: Any) -> list[NDArray[np.float32] | None]:
        """Returns a (D,) float32 vector per molecule, or None with the reason in `embedder.report_`.

        Args:
            mols: SMILES or RDKit molecules.
        """
        vectors = self.embedder.transform([_smiles(mol) for mol in mols])
        invalid = {bad.row for bad in self.embedder.report_}
        return [None if row in invalid else vector for row, vector in enumerate(vectors)]

    def __len__(self) -> int:
        return self.embedder.width_

    @property
    def columns(self) -> list[str]:
        """Names of the D elements."""
        return self.embedder.get_feature_names_out().tolist()


def _smiles(mol: str | Mol | None) -> str | None:
    if mol is None or isinstance(mol, str):
        return mol
    from rdkit import Chem  # here, because SMILES do not need it

    return str(Chem.MolToSmiles(mol))
