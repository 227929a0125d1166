"""RDKit molecule -> coordinates of its 2D drawing. The drawing itself is made when a batch is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdDepictor


def depict(mol: Chem.Mol) -> NDArray[np.float32]:
    """Lays a molecule out in the plane, replacing its conformers by the drawing.

    Returns:
        (A, 2) float32, RDKit's units, in which a bond is about 1.5 long; the origin means nothing.
    """
    # Left as it is laid out: bonds then point in few directions, which compresses to half of what the canonical
    # orientation takes, and pictures are turned by chance anyway.
    rdDepictor.Compute2DCoords(mol, canonOrient=False)
    return mol.GetConformer().GetPositions()[:, :2].astype(np.float32)
