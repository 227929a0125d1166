"""Metrics of how well the codes of modalities agree: retrieval, alignment and uniformity.

B molecules, P of them that have both modalities of a pair, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, permutations
from typing import NamedTuple

import torch
from torch import Tensor

from mmsa_dist.losses.contrast import unit


class Retrieval(NamedTuple):
    """How often a code retrieves its molecule's code of another modality."""

    at_1: Tensor
    """() float32 in [0, 1]: share of hits at rank 1 by cosine; NaN if there was nothing to choose from."""
    chance: Tensor
    """() float32: the same for random codes, 1 / P; NaN where `at_1` is."""


@torch.no_grad()
def retrieval(codes: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Retrieval:
    """Measures retrieval among the B molecules of this rank, averaged over ordered pairs of modalities.

    A pair counts if at least two molecules have both, for with one there is nothing to choose from.

    Args:
        codes: by modality, (B, D).
        present: by modality, (B,) bool; a molecule that lacks one of the two is neither query nor candidate.
    """
    measured = []
    for query, target in permutations(codes, 2):
        both_B = present[query] & present[target]
        a_PD, b_PD = unit(codes[query][both_B]), unit(codes[target][both_B])
        if len(a_PD) > 1:
            found_P = (a_PD @ b_PD.T).argmax(dim=1)
            hits_P = (found_P == torch.arange(len(a_PD), device=a_PD.device)).float()
            measured.append(torch.stack([hits_P.mean(), hits_P.new_tensor(1 / len(a_PD))]))
    reference = next(iter(codes.values()))
    nothing_2 = reference.new_full((2,), torch.nan, dtype=torch.float32)
    return Retrieval(*(torch.stack(measured).mean(dim=0) if measured else nothing_2))


@torch.no_grad()
def alignment(codes: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """Returns the mean squared distance between two unit codes of a molecule (Wang and Isola 2020); 0 is perfect.

    Args:
        codes: by modality, (B, D).
        present: by modality, (B,) bool.

    Returns:
        () float32 in [0, 4], over all pairs of modalities and molecules that have both; NaN if there is none.
    """
    distances = []
    for one, other in combinations(codes, 2):
        both_B = present[one] & present[other]
        distances.append((unit(codes[one][both_B]) - unit(codes[other][both_B])).square().sum(dim=1))
    reference = next(iter(codes.values()))
    return torch.cat(distances).mean() if distances else reference.new_full((), torch.nan, dtype=torch.float32)


@torch.no_grad()
def uniformity(codes: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """Returns log mean exp(−2 d²) over pairs of molecules (Wang and Isola 2020), averaged over modalities.

    0 if all codes are equal; about −4 if they fill the sphere.

    Args:
        codes: by modality, (B, D).
        present: by modality, (B,) bool.

    Returns:
        () float32, at most 0; NaN if no modality has two molecules.
    """
    values = []
    for name, code_BD in codes.items():
        code_PD = unit(code_BD[present[name]])
        if len(code_PD) > 1:
            values.append(torch.pdist(code_PD).square().mul(-2).exp().mean().log())
    reference = next(iter(codes.values()))
    return torch.stack(values).mean() if values else reference.new_full((), torch.nan, dtype=torch.float32)
