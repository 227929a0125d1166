"""What becomes of the molecules that are embedded: vectors, or why there are none.

n input rows, D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_MODALITY = ("no_modality", "none of the modalities that the view sees could be made for this molecule")
"""Reason and message of a molecule that parses but has no modality that the view reads."""

NOT_FINITE = ("not_finite", "the model gives numbers that are not finite for this molecule")
"""The same for a molecule whose vector holds NaN or infinity, as after a diverged training."""


class EmbeddingError(ValueError):
    """A row has no vector, and `on_error` is ``raise``."""


@dataclass(frozen=True)
class InvalidMolecule:
    """Why an input row has no vector."""

    row: int
    """Zero-based row number."""
    smiles: object
    """The input value."""
    reason: str
    """Machine-readable code, one per kind of failure."""
    message: str
    """Human-readable explanation."""


@dataclass(frozen=True)
class EmbeddedMolecules:
    """Result for n input rows."""

    vectors: NDArray[np.float32]
    """(n, D); NaN in the rows of `invalid`."""
    smiles: tuple[str | None, ...]
    """n canonical isomeric SMILES, of the standardized parents if `standardize` is on; None where invalid."""
    inchikeys: tuple[str | None, ...]
    """InChIKeys of `smiles`; None where invalid, where InChI gives none, and if none are computed."""
    invalid: tuple[InvalidMolecule, ...]
    """Rows without a vector, ascending."""
