"""RDKit molecule -> coordinates of its 2D depiction. Pictures are drawn from them when a batch is made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdDepictor


def depict(mol: Chem.Mol) -> NDArray[np.float32]:
    """Lays a molecule out in the plane; its conformers are replaced by the layout.

    Returns:
        (A, 2) float32, in RDKit's units, of which a bond measures about 1.5; the origin is arbitrary.
    """
    # Without the canonical orientation bonds point in few directions, which halves the compressed size. Pictures are
    # rotated at random in any case.
    rdDepictor.Compute2DCoords(mol, canonOrient=False)
    return mol.GetConformer().GetPositions()[:, :2].astype(np.float32)
