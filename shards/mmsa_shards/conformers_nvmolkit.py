"""SMILES -> 3D coordinates on a GPU by nvMolKit, many molecules at a time; what it leaves or spoils is for RDKit.

Written against nvMolKit 0.6.0, which needs the release of RDKit that it was built with. What it does on an H200 stands
in docs/results.md. A whole batch waits for its hardest molecule, so what it finds hard is not given to it at all.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from mmsa_shards.conformers import sound_conformers
from mmsa_shards.errors import PrepareError

_ELEMENTS = frozenset((1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 34, 35, 53))
_MOST_ATOMS = 60
"""Of the first 500 of a mixed corpus the 16 or so with a metal or more heavy atoms than this took 15 of 17 s."""

#: Adds up to `count` conformers to every molecule in place: (molecules with hydrogens, count, seed, MMFF steps).
EmbedBatch = Callable[[list[Chem.Mol], int, int, int], None]


def require_nvmolkit() -> None:
    """Makes sure that `embed_many` can work on this machine.

    Raises:
        PrepareError: nvMolKit is not installed, or there is no GPU.
    """
    missing = None
    if importlib.util.find_spec("nvmolkit") is None:
        missing = "the package nvmolkit is not installed (pip install nvmolkit, which brings its own release of rdkit)"
    elif _count_gpus() == 0:
        missing = "the CUDA driver shows no GPU to this process"
    if missing:
        raise PrepareError(
            f"prepare.conformer_backend=nvmolkit cannot embed here: {missing}; mend that, or set "
            "prepare.conformer_backend=rdkit"
        )


def embed_many(
    smiles: Sequence[str], *, count: int, seed: int, mmff_iterations: int, embed_batch: EmbedBatch | None = None
) -> list[NDArray[np.float32] | None]:
    """Embeds molecules together by ETKDGv3.

    Args:
        smiles: of the molecules, A atoms each.
        count: conformers wanted of each.
        seed: of the preparation. nvMolKit takes one for all, so a conformer may depend on its batch and its GPU.
        mmff_iterations: steps of MMFF94 minimization after embedding; 0 for none.
        embed_batch: what embeds; None is nvMolKit.

    Returns:
        For every molecule the (`count`, A, 3) float32 coordinates in Å of its atoms without hydrogens, or None
        where there are fewer conformers than that, or one of them is no structure, or it is large or holds a metal.

    Raises:
        PrepareError: nvMolKit or a GPU is missing, or nvMolKit failed on the batch as a whole.
    """
    if embed_batch is None:
        require_nvmolkit()
        embed_batch = _nvmolkit
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    embedded = [Chem.AddHs(mol) if mol is not None and _is_easy(mol) else None for mol in mols]
    try:
        embed_batch([mol for mol in embedded if mol is not None], count, seed, mmff_iterations)
    except (RuntimeError, ValueError) as error:
        raise PrepareError(
            f"nvMolKit failed on a batch of {len(mols)} molecules ({error}): check the GPU, or set "
            "prepare.conformer_backend=rdkit"
        ) from error
    found = [
        sound_conformers(mol, with_hydrogens) if mol is not None and with_hydrogens is not None else None
        for mol, with_hydrogens in zip(mols, embedded, strict=True)
    ]
    return [xyz if xyz is not None and len(xyz) == count else None for xyz in found]


def _is_easy(mol: Chem.Mol) -> bool:
    return mol.GetNumAtoms() <= _MOST_ATOMS and all(atom.GetAtomicNum() in _ELEMENTS for atom in mol.GetAtoms())


def _nvmolkit(mols: list[Chem.Mol], count: int, seed: int, mmff_iterations: int) -> None:
    from nvmolkit.embedMolecules import EmbedMolecules
    from nvmolkit.mmffOptimization import MMFFOptimizeMoleculesConfs

    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed & 0x7FFFFFFF  # RDKit takes a positive int32
    parameters.useRandomCoords = True  # nvMolKit has no other start
    EmbedMolecules(mols, parameters, confsPerMolecule=count)
    if mmff_iterations:
        known = [mol for mol in mols if mol.GetNumConformers() and rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol)]
        MMFFOptimizeMoleculesConfs(known, maxIters=mmff_iterations)


def _count_gpus() -> int:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value
