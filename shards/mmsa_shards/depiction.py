"""RDKit molecule -> coordinates of its 2D drawing. The drawing itself is made when a batch is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdDepictor


def depict(mol: Chem.Mol) -> NDArray[np.float32]:
    """Lays a molecule out in the plane, replacing its conformers by the drawing.

    Returns:
        (A, 2) float32: atoms around the origin in RDKit's units, in which a bond is about 1.5 long.
    """
    rdDepictor.Compute2DCoords(mol)
    xy = mol.GetConformer().GetPositions()[:, :2]
    # Centred, because float16 (the type in the block) is finest near zero.
    return (xy - xy.mean(axis=0)).astype(np.float32)
