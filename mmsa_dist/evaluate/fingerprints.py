"""Molecular fingerprints: the usual alternative to learned vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def ecfp4(smiles: Sequence[str], *, bits: int = 2048) -> NDArray[np.uint8]:
    """Computes extended-connectivity fingerprints of diameter 4 (Rogers & Hahn 2010) with RDKit's Morgan generator.

    Args:
        smiles: n valid SMILES.
        bits: length of a fingerprint.

    Returns:
        (n, bits) uint8, 0 or 1.

    Raises:
        ValueError: a SMILES does not parse.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=bits)
    result = np.empty((len(smiles), bits), dtype=np.uint8)
    with rdBase.BlockLogs():
        for row, text in enumerate(smiles):
            mol = Chem.MolFromSmiles(text)
            if mol is None:
                raise ValueError(f"row {row}: {text!r} does not parse")
            result[row] = generator.GetFingerprintAsNumPy(mol)
    return result
