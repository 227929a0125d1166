"""RDKit molecule -> 3D coordinates: embedding by ETKDGv3 or distance geometry, and checks of given coordinates.

Sizes: A atoms of the molecule, without its implicit hydrogens; n conformers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers, GetStereoisomerCount, StereoEnumerationOptions

#: Increased when the same molecule, coordinates and seed give other conformers: shards of two recipes are not mixed.
RECIPE = 5

# The steps of an embedding. Eigenvalues of the distance matrix are the faster start, random coordinates the more
# reliable one. A molecule that is still without a conformer is often a cage whose unspecified centres fit together in
# few ways, so its stereoisomers are tried one by one. A larger box helps if random coordinates were too crowded.
# Of 3,000 random PubChem molecules of at most 50 heavy atoms, the four steps left 75, 16, 11 and 10 without a
# conformer; of 2,000 others, 13 after the last step. Of these 23, 17 embed at once without their stereo: they are drawn
# with stereo that their rings hardly allow. 20 attempts from random coordinates found no more than 10, and 100 attempts
# three more, for a quarter more time over all molecules; a looser force tolerance, ETKDGv2 and ignoreSmoothingFailures
# found none. Molecules that are still without a conformer go to `_relaxed`, which found one for 8 of 13 others, in 3 s
# for all 13, after 23 s for the steps before it.
# RDKit's own `timeout` stays off: it measures wall-clock time, so the outcome would depend on how busy the machine is.
# `mmsa_shards.guard` ends what takes too long.
_FROM_DISTANCES = {"useRandomCoords": False, "maxIterations": 20}
_FROM_RANDOM = {"useRandomCoords": True, "maxIterations": 10}
_EACH_ISOMER = {"useRandomCoords": False, "maxIterations": 10}
_FROM_A_LARGER_BOX = {"useRandomCoords": True, "maxIterations": 20, "boxSizeMult": 5.0}
# An attempt at a large molecule takes seconds. Of 120 random PubChem molecules of more than 50 heavy atoms, half the
# attempts of the first two steps gave 117 a conformer in 58 s, all steps 119 in 72 s, RDKit's defaults 112 in 76 s.
_LARGE = 50  # heavy atoms
_FEW_FROM_DISTANCES = {"useRandomCoords": False, "maxIterations": 10}
_FEW_FROM_RANDOM = {"useRandomCoords": True, "maxIterations": 5}
# Strained rings contradict what ETKDG knows of rings and torsions, and cannot form if chirality is enforced from the
# start. Without both they come out flattened or as another isomer: a force field then gives them their shape, and
# those that lost the stereo that they are drawn with are dropped.
_WITHOUT_KNOWLEDGE = {
    "useRandomCoords": True,
    "maxIterations": 10,
    "boxSizeMult": 2.0,
    "useBasicKnowledge": False,
    "useExpTorsionAnglePrefs": False,
    "enforceChirality": False,
}
_RELAXED_TRIES = 20
_RELAXED_STEPS = 2000
_LARGEST_SEED = 0x7FFFFFFF  # RDKit takes a positive int32
_ISOMERS = StereoEnumerationOptions(maxIsomers=8, onlyUnassigned=True, rand=0)

# Length of a bond divided by the sum of its covalent radii. Triple bonds have 0.78. Of 679 random PubChem molecules two
# came out of RDKit with a bond of 0.56 or 1.32: flattened cages or torn rings. The next step gets most of them right.
_SHORTEST_RATIO, _LONGEST_RATIO = 0.7, 1.3
_COVALENT_RADII = np.asarray([Chem.GetPeriodicTable().GetRcovalent(number) for number in range(119)])

# Given coordinates have wider limits, which tell Å from nm and, unless all bonds are of metals or deuterium, from bohr
# (bonds are 1.9 times as long); a drawing may be within them. In 2,091 real structures (the 1,990 and 101 of two tests
# in tests/shards/test_conformers.py) bonds of heavy atoms have ratios of 0.75 to 1.11. There is no longest bond of
# metals, of which radii say little, and of deuterium, which one of those records has 6.8 Å from its carbon.
_SHORTEST_GIVEN = 0.7  # Å; the shortest bond of all, H-H, has 0.74
_LONGEST_GIVEN_RATIO = 1.5
_NEVER_TOO_LONG = 1.7  # Å: 1.5 times F-F; few bonds are longer, and only their elements are looked up
_FLAT = 1e-3  # Å: root mean square of the distances from the best plane
_NONMETALS = [*range(5, 11), *range(14, 19), *range(33, 37), *range(52, 55)]
_NONMETAL_RADII = np.full_like(_COVALENT_RADII, np.nan)
_NONMETAL_RADII[_NONMETALS] = _COVALENT_RADII[_NONMETALS]


def embed(mol: Chem.Mol, *, count: int, seed: int, inchikey: str, mmff_iterations: int = 0) -> NDArray[np.float32]:
    """Embeds a molecule by ETKDGv3 (Riniker & Landrum 2015; Wang et al. 2020), with explicit hydrogens.

    Molecules of up to 50 heavy atoms that ETKDGv3 cannot embed are embedded by plain distance geometry and minimized
    by MMFF94.

    Args:
        mol: a sanitized molecule with implicit hydrogens.
        count: conformers wanted.
        seed: of the preparation; with `inchikey` it determines the conformers, whatever else is embedded.
        inchikey: of the molecule.
        mmff_iterations: steps of MMFF94 minimization (Halgren 1996) after embedding, for molecules that MMFF94 has all
            parameters for. With 0 only molecules from plain distance geometry are minimized.

    Returns:
        (n, A, 3) float32, Å: n <= `count` conformers without hydrogens; n = 0 if embedding failed.
    """
    with_hydrogens = Chem.AddHs(mol)
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = _seed_of(inchikey, seed)
    for candidate, settings in _embedding_steps(with_hydrogens):
        for name, value in settings.items():
            setattr(parameters, name, value)
        try:
            rdDistGeom.EmbedMultipleConfs(candidate, count, parameters)
        except (RuntimeError, ValueError):  # RDKit found no distance bounds: a failure to embed like any other
            break
        if mmff_iterations and rdForceFieldHelpers.MMFFHasAllMoleculeParams(candidate):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(candidate, maxIters=mmff_iterations)
        found = sound_conformers(mol, candidate)
        if len(found):
            return found
    return _relaxed(mol, with_hydrogens, count, parameters)


def _embedding_steps(mol: Chem.Mol) -> Iterator[tuple[Chem.Mol, dict[str, Any]]]:
    if mol.GetNumHeavyAtoms() > _LARGE:
        yield mol, _FEW_FROM_DISTANCES
        yield mol, _FEW_FROM_RANDOM
        return
    yield mol, _FROM_DISTANCES
    yield mol, _FROM_RANDOM
    if GetStereoisomerCount(mol, _ISOMERS) > 1:
        for isomer in EnumerateStereoisomers(mol, _ISOMERS):
            yield isomer, _EACH_ISOMER
    yield mol, _FROM_A_LARGER_BOX


def _relaxed(mol: Chem.Mol, with_hydrogens: Chem.Mol, count: int, parameters: Any) -> NDArray[np.float32]:
    """Embeds by plain distance geometry, minimizes by MMFF94, and keeps the conformers with the stereo of `mol`."""
    for name, value in _WITHOUT_KNOWLEDGE.items():
        setattr(parameters, name, value)
    first_seed, kept = parameters.randomSeed, [np.empty((0, mol.GetNumAtoms(), 3), dtype=np.float32)]
    with suppress(RuntimeError, ValueError):  # a molecule on which RDKit raises gets no more
        possible = mol.GetNumHeavyAtoms() <= _LARGE and rdForceFieldHelpers.MMFFHasAllMoleculeParams(with_hydrogens)
        for number in range(count - 1 + _RELAXED_TRIES if possible else 0):
            parameters.randomSeed = (first_seed + number) & _LARGEST_SEED
            candidate = Chem.Mol(with_hydrogens)
            if rdDistGeom.EmbedMolecule(candidate, parameters) < 0:  # with another seed it hardly ever succeeds
                break
            still_moving = rdForceFieldHelpers.MMFFOptimizeMolecule(candidate, maxIters=_RELAXED_STEPS)
            if not still_moving and has_stereo_of(with_hydrogens, candidate):
                kept.append(sound_conformers(mol, candidate))
            if sum(map(len, kept)) == count:
                break
    return np.concatenate(kept)


def has_stereo_of(drawn: Chem.Mol, embedded: Chem.Mol, conformer: int = -1) -> bool:
    """Whether a conformer has the stereo of every centre and double bond that is specified in the drawing.

    Args:
        drawn: the molecule with its stereo.
        embedded: the same atoms in the same order, with conformers.
        conformer: its id; -1 for the first.
    """
    seen = Chem.Mol(embedded)
    Chem.AssignStereochemistryFrom3D(seen, conformer, replaceExistingTags=True)
    return all(
        a.GetChiralTag() in (Chem.ChiralType.CHI_UNSPECIFIED, b.GetChiralTag())
        for a, b in zip(drawn.GetAtoms(), seen.GetAtoms(), strict=True)
    ) and all(
        a.GetStereo() in (Chem.BondStereo.STEREONONE, Chem.BondStereo.STEREOANY, b.GetStereo())
        for a, b in zip(drawn.GetBonds(), seen.GetBonds(), strict=True)
    )


def sound_conformers(mol: Chem.Mol, embedded: Chem.Mol) -> NDArray[np.float32]:
    """Returns the conformers of a molecule with hydrogens that are plausible structures.

    Args:
        mol: the molecule of A atoms, its hydrogens implicit.
        embedded: the same molecule after `Chem.AddHs`, which appends atoms: its first A atoms are those of `mol`.

    Returns:
        (n, A, 3) float32, Å: the conformers with finite coordinates for every atom and bonds of sensible lengths.
    """
    num_atoms = mol.GetNumAtoms()
    ends = _bond_ends(embedded)
    radii = _COVALENT_RADII[[atom.GetAtomicNum() for atom in embedded.GetAtoms()]]
    usual = radii[ends[:, 0]] + radii[ends[:, 1]]
    sound = []
    for conformer in embedded.GetConformers():
        xyz = conformer.GetPositions()
        if len(xyz) == embedded.GetNumAtoms() and np.isfinite(xyz).all():
            ratio = _bond_lengths(xyz, ends) / usual
            if ratio.min(initial=1) > _SHORTEST_RATIO and ratio.max(initial=1) < _LONGEST_RATIO:
                sound.append(xyz[:num_atoms])
    return np.asarray(sound, dtype=np.float32).reshape(-1, num_atoms, 3)


def _bond_ends(mol: Chem.Mol) -> NDArray[np.int64]:
    return np.argwhere(Chem.GetAdjacencyMatrix(mol))


def _bond_lengths(xyz: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    step = xyz[ends[:, 0]] - xyz[ends[:, 1]]
    return np.sqrt(np.einsum("ij,ij->i", step, step))


def given_coordinates(mol: Chem.Mol) -> NDArray[np.float32] | None:
    """Returns the (A, 3) float32 coordinates in Å from the input, or None if they are not a 3D structure.

    They are not if the input says that they are a drawing, or if they are not finite, have bonds far shorter or longer
    than those of molecules (coinciding atoms, nm, bohr), or lie all in one plane though a saturated carbon has three or
    four heavy neighbours. Other drawings that claim to be 3D are taken as such, because many molecules are flat.
    """
    if mol.GetNumConformers() == 0 or not mol.GetConformer().Is3D():
        return None
    xyz = mol.GetConformer().GetPositions()
    if not math.isfinite(xyz.sum()):
        return None
    ends = _bond_ends(mol)
    lengths = _bond_lengths(xyz, ends)
    if lengths.min(initial=math.inf) < _SHORTEST_GIVEN:
        return None
    long = lengths > _NEVER_TOO_LONG
    for bonded, length in zip(ends[long].tolist(), lengths[long], strict=True):
        radii = _NONMETAL_RADII[[mol.GetAtomWithIdx(atom).GetAtomicNum() for atom in bonded]]
        if length > _LONGEST_GIVEN_RATIO * radii.sum():  # never for NaN
            return None
    if _is_flat(xyz) and any(map(_is_never_flat, mol.GetAtoms())):
        return None
    return xyz.astype(np.float32)


def _is_flat(xyz: NDArray[np.float64]) -> bool:
    """Returns whether all atoms lie in one plane, however it is turned."""
    thickness = np.linalg.svd(xyz - xyz.mean(axis=0), compute_uv=False)[-1] / math.sqrt(len(xyz))
    return bool(thickness < _FLAT)


def _is_never_flat(atom: Chem.Atom) -> bool:
    """Returns whether an atom is a saturated carbon with three or four heavy neighbours, which lie in no plane."""
    return (
        atom.GetAtomicNum() == 6
        and atom.GetTotalDegree() == 4
        and sum(neighbour.GetAtomicNum() > 1 for neighbour in atom.GetNeighbors()) >= 3
    )


def _seed_of(inchikey: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{inchikey}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & _LARGEST_SEED
