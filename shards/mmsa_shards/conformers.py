"""RDKit molecule -> 3D coordinates: embedding by ETKDGv3, and judging coordinates that were given.

Sizes: A atoms of the molecule (its hydrogens are implicit), n conformers.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdDistGeom

# Attempts of one embedding: eigenvalues of the distance matrix are the quicker start, random coordinates the
# surer. RDKit's own `timeout` stays off: it watches the clock on the wall, so the outcome would depend on how
# busy the machine is. What must end is ended by `mmsa_shards.guard`.
_ATTEMPTS_FROM_DISTANCES = 20
_ATTEMPTS_FROM_RANDOM = 20

_SHORTEST_BOND = 0.4  # Å; H-H, the shortest there is, measures 0.74


def embed(mol: Chem.Mol, *, count: int, seed: int, inchikey: str) -> NDArray[np.float32]:
    """Embeds a molecule by ETKDGv3 (Riniker & Landrum 2015; Wang et al. 2020) with its hydrogens in place.

    Args:
        mol: a sanitized molecule with implicit hydrogens.
        count: conformers wanted.
        seed: of the preparation; with `inchikey` it fixes the conformers whatever else is embedded.
        inchikey: of the molecule.

    Returns:
        (n, A, 3) float32, Å: n <= `count` conformers without hydrogens; n = 0 where embedding failed.
    """
    with_hydrogens = Chem.AddHs(mol)
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = _seed_of(inchikey, seed)
    for random_start, attempts in ((False, _ATTEMPTS_FROM_DISTANCES), (True, _ATTEMPTS_FROM_RANDOM)):
        parameters.useRandomCoords = random_start
        parameters.maxIterations = attempts
        try:
            if rdDistGeom.EmbedMultipleConfs(with_hydrogens, count, parameters):
                break
        except (RuntimeError, ValueError):  # no bounds to begin with: a failure to embed like any other
            break
    # AddHs appends, so the first A atoms are those of `mol` in its order.
    num_atoms = mol.GetNumAtoms()
    found = [conformer.GetPositions()[:num_atoms] for conformer in with_hydrogens.GetConformers()]
    return np.asarray(found, dtype=np.float32).reshape(-1, num_atoms, 3)


def given_coordinates(mol: Chem.Mol) -> NDArray[np.float32] | None:
    """Returns the (A, 3) float32 coordinates in Å that the input gave, or None where they are no 3D structure.

    A drawing is not 3D, nor is a conformer with coinciding bonded atoms or numbers that are not finite.
    """
    if mol.GetNumConformers() == 0 or not mol.GetConformer().Is3D():
        return None
    xyz = mol.GetConformer().GetPositions()
    if not np.isfinite(xyz).all():
        return None
    lengths = Chem.Get3DDistanceMatrix(mol)[Chem.GetAdjacencyMatrix(mol) > 0]
    if lengths.size and lengths.min() < _SHORTEST_BOND:
        return None
    return xyz.astype(np.float32)


def _seed_of(inchikey: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{inchikey}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF  # RDKit takes a positive int32
