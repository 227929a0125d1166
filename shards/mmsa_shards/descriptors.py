"""RDKit's descriptors of the 2D graph: size, polarity, lipophilicity, charge, shape, in numbers to train against.

The five sets that RDKit computes in C++ in a millisecond: its registered properties (logP of Wildman and Crippen, TPSA,
Kier and Hall's indices, counts), MQNs (Nguyen et al. 2009), and the surface by partial charge, refractivity and logP
(Labute 2000).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

_BITS = 10  # kept of each value, its error 1/1024 at most: a block takes 140 bytes a molecule for them, 190 with all 24

# By name, so that a version of RDKit that has others fails where it is imported.
_PROPERTY_NAMES = (
    "exactmw", "amw", "lipinskiHBA", "lipinskiHBD", "NumRotatableBonds", "NumHBD", "NumHBA", "NumHeavyAtoms",
    "NumAtoms", "NumHeteroatoms", "NumAmideBonds", "FractionCSP3", "NumRings", "NumAromaticRings",
    "NumAliphaticRings", "NumSaturatedRings", "NumHeterocycles", "NumAromaticHeterocycles",
    "NumSaturatedHeterocycles", "NumAliphaticHeterocycles", "NumSpiroAtoms", "NumBridgeheadAtoms",
    "NumAtomStereoCenters", "NumUnspecifiedAtomStereoCenters", "labuteASA", "tpsa", "CrippenClogP", "CrippenMR",
    "chi0v", "chi1v", "chi2v", "chi3v", "chi4v", "chi0n", "chi1n", "chi2n", "chi3n", "chi4n", "hallKierAlpha",
    "kappa1", "kappa2", "kappa3", "Phi",
)  # fmt: skip
_PROPERTIES = rdMolDescriptors.Properties(list(_PROPERTY_NAMES))
_SETS: tuple[tuple[str, int, Callable[[Chem.Mol], Sequence[float]]], ...] = (
    ("MQN", 42, rdMolDescriptors.MQNs_),
    ("PEOE_VSA", 14, rdMolDescriptors.PEOE_VSA_),
    ("SMR_VSA", 10, rdMolDescriptors.SMR_VSA_),
    ("SlogP_VSA", 12, rdMolDescriptors.SlogP_VSA_),
)

#: RDKit's names of the values that `compute_descriptors` returns, in order.
NAMES: tuple[str, ...] = (
    *_PROPERTY_NAMES,
    *(f"{name}{number}" for name, count, _ in _SETS for number in range(1, count + 1)),
)


def compute_descriptors(mol: Chem.Mol) -> NDArray[np.float32]:
    """Returns the values of `NAMES`, (F,) float32, within 0.1 %; NaN where RDKit has none, or one beyond float32."""
    values = [_PROPERTIES.ComputeProperties(mol), *(compute(mol) for _, _, compute in _SETS)]
    mantissa, exponent = np.frexp(np.concatenate([np.asarray(part, dtype=np.float64) for part in values]))
    with np.errstate(over="ignore"):
        result = np.ldexp(np.rint(np.ldexp(mantissa, _BITS)), exponent - _BITS).astype(np.float32)
    result[~np.isfinite(result)] = np.nan
    return result
