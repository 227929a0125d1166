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

from mmsa_shards.conformers import has_stereo_of, sound_conformers
from mmsa_shards.errors import PrepareError

_ELEMENTS = frozenset(("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I"))
# A batch waits for its hardest molecule: 500 molecules took 17 s, and 1 s without the 3 % that were larger than this.
_MOST_HEAVY_ATOMS = 60

#: Adds up to `count` conformers to every molecule in place: (molecules with hydrogens, count, seed, MMFF steps).
EmbedBatch = Callable[[list[Chem.Mol], int, int, int], None]


class BatchError(RuntimeError):
    """nvMolKit failed on a batch as a whole: how many molecules it held, and why."""


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
        where there are fewer conformers than that, one of them is no structure or has not the stereo that is drawn, or
        it was not tried, being large or of unusual elements.

    Raises:
        PrepareError: nvMolKit or a GPU is missing.
        BatchError: nvMolKit failed on the batch as a whole.
    """
    if embed_batch is None:
        require_nvmolkit()
        embed_batch = _nvmolkit
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    embedded = [Chem.AddHs(mol) if mol is not None and _is_easy(mol) else None for mol in mols]
    easy = [mol for mol in embedded if mol is not None]
    try:
        embed_batch(easy, count, seed, mmff_iterations)
    except (RuntimeError, ValueError) as error:
        raise BatchError(f"nvMolKit failed on a batch of {len(easy)} molecules ({error})") from error
    return [
        _wanted(mol, with_hydrogens, count) if mol is not None and with_hydrogens is not None else None
        for mol, with_hydrogens in zip(mols, embedded, strict=True)
    ]


def _wanted(mol: Chem.Mol, embedded: Chem.Mol, count: int) -> NDArray[np.float32] | None:
    xyz = sound_conformers(mol, embedded)
    drawn = Chem.AddHs(mol)  # of itself, for what embeds may have changed the tags of what it was given
    if len(xyz) != count or not all(has_stereo_of(drawn, embedded, c.GetId()) for c in embedded.GetConformers()):
        return None
    return xyz


def _is_easy(mol: Chem.Mol) -> bool:
    return mol.GetNumHeavyAtoms() <= _MOST_HEAVY_ATOMS and all(a.GetSymbol() in _ELEMENTS for a in mol.GetAtoms())


def _nvmolkit(mols: list[Chem.Mol], count: int, seed: int, mmff_iterations: int) -> None:
    from nvmolkit.embedMolecules import EmbedMolecules
    from nvmolkit.mmffOptimization import MMFFOptimizeMoleculesConfs

    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed & 0x7FFFFFFF  # RDKit takes a positive int32
    parameters.useRandomCoords = True  # nvMolKit has no other start
    EmbedMolecules(mols, parameters, confsPerMolecule=count)
    if mmff_iterations:
        known = [mol for mol in mols if mol.GetNumConformers() and rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol)]
        if known:
            MMFFOptimizeMoleculesConfs(known, maxIters=mmff_iterations)


def _count_gpus() -> int:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value
