"""Symmetric InfoNCE between modalities, with the molecules of every rank as negatives.

Temperature and normalization as in GraphMVP, MolCLR and CGIP; the loss is that of van den Oord et al. 2018,
arXiv 1807.03748. B molecules of this rank, G = W·B molecules of all W ranks, M modalities, P pairs of them,
D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from mmsa_dist.runtime.distributed import gather, gather_with_gradient, rank, world_size


def info_nce(a_BD: Tensor, b_BD: Tensor, temperature: float, *, present_B: Tensor | None = None) -> Tensor:
    """Returns the symmetric InfoNCE between `a` and `b`, with negatives from all ranks.

    With cosine similarities s: mean over i of −½ log softmax(s(a_i, b_·)/t)_i − ½ log softmax(s(b_i, a_·)/t)_i.

    The mean is over the present rows of all ranks, however they are distributed: averaged over ranks, value and
    gradient are those of a single process that holds all G rows.

    Args:
        a_BD: (B, D) of any scale; normalized here. Every rank must pass the same B.
        b_BD: (B, D); row i matches row i of `a_BD`.
        temperature: divides the cosine similarity.
        present_B: (B,) bool; a row where it is False is neither anchor nor negative, whatever its values.
            None means that all rows are present.

    Returns:
        () in the precision of the inputs, but never below float32; zero if no rank has a present row.
    """
    if present_B is None:
        present_B = torch.ones(a_BD.shape[0], dtype=torch.bool, device=a_BD.device)
    losses_P, _ = _pair_losses([a_BD, b_BD], [present_B, present_B], temperature)
    return losses_P.squeeze(0)


def contrast_loss(codes: Mapping[str, Tensor], present: Mapping[str, Tensor], temperature: float) -> Tensor:
    """Returns the mean of `info_nce` over the pairs of modalities that some molecule has both of.

    Args:
        codes: by modality, (B, D); the same modalities on every rank.
        present: by modality, (B,) bool: the molecules that have it. A pair's loss uses only molecules with both.
        temperature: divides the cosine similarity.

    Returns:
        () scalar, to be averaged over ranks like that of `info_nce`; zero with fewer than two modalities.
    """
    if len(codes) < 2:
        return next(iter(codes.values())).new_zeros(())
    losses_P, molecules_P = _pair_losses(list(codes.values()), [present[name] for name in codes], temperature)
    return losses_P.sum() / (molecules_P > 0).sum().clamp(min=1)


def _pair_losses(codes: list[Tensor], present: list[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Returns `info_nce` of each pair (P,) and the number of molecules of all ranks that have both (P,)."""
    with torch.autocast(codes[0].device.type, enabled=False):  # similarities / 0.1 need more than 8 bits
        present_BM = torch.stack(present, dim=1)
        local_MBD = torch.stack([unit(x.masked_fill(~p[:, None], 0)) for x, p in zip(codes, present, strict=True)])
        # One collective for all codes; the masks below are small beside them.
        all_MGD = gather_with_gradient(local_MBD.transpose(0, 1).contiguous()).transpose(0, 1)
        present_GM = gather(present_BM.to(torch.uint8)).bool()
        losses, molecules = [], []
        for a, b in combinations(range(len(codes)), 2):
            both_B, both_G = present_BM[:, a] & present_BM[:, b], present_GM[:, a] & present_GM[:, b]
            a_to_b_B = _cross_entropy(local_MBD[a], all_MGD[b], both_G, temperature)
            b_to_a_B = _cross_entropy(local_MBD[b], all_MGD[a], both_G, temperature)
            molecules.append(both_G.sum())
            total = torch.where(both_B, a_to_b_B + b_to_a_B, 0).sum() / 2
            # The mean over ranks of W · (local sum) / (global count) is the mean over all molecules.
            losses.append(world_size() * total / both_G.sum().clamp(min=1))
        return torch.stack(losses), torch.stack(molecules)


def _cross_entropy(anchors_BD: Tensor, candidates_GD: Tensor, candidate_G: Tensor, temperature: float) -> Tensor:
    """Returns −log softmax of each anchor's own similarity among the candidates, (B,)."""
    similarity_BG = anchors_BD @ candidates_GD.T / temperature
    # Not −inf: the row of an absent anchor may have no candidate, but needs a finite gradient.
    similarity_BG = similarity_BG.masked_fill(~candidate_G, torch.finfo(similarity_BG.dtype).min)
    own_B = rank() * len(anchors_BD) + torch.arange(len(anchors_BD), device=anchors_BD.device)
    return functional.cross_entropy(similarity_BG, own_B, reduction="none")


def unit(x_BD: Tensor) -> Tensor:
    """Scales rows to length one, at least in float32; a zero row stays zero with a finite gradient."""
    return functional.normalize(x_BD.to(torch.promote_types(x_BD.dtype, torch.float32)), dim=-1)
