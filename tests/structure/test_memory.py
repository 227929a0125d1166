"""The meters of the memory on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmsa_dist.structure.memory import Memory, dead_anchors


def memory(anchors: torch.Tensor, similarity="dot", temperature=0.01) -> Memory:
    module = Memory(*anchors.shape, similarity=similarity, temperature=temperature)
    with torch.no_grad():
        module.anchors_SD.copy_(anchors)
    return module


def meters(module: Memory, g_BD: torch.Tensor, present_B: torch.Tensor | None = None) -> dict[str, float]:
    """Every molecule is alone in its hyperedge, so that g is the input."""
    rows = len(g_BD)
    _, _, lse_B = module(g_BD, torch.arange(rows + 1), torch.arange(rows), torch.ones(rows))
    return module.meters(g_BD, lse_B, torch.ones(rows, dtype=torch.bool) if present_B is None else present_B)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_every_anchor_used_alike(similarity):
    got = meters(memory(torch.eye(4), similarity), 2 * torch.eye(4))
    assert got["memory/anchor_entropy"] == pytest.approx(1)
    assert got["memory/effective_anchors"] == pytest.approx(4)
    assert got["memory/dead_anchors"] == 0
    assert got["memory/g_norm"] == pytest.approx(2)
    assert got["memory/g_cosine"] == pytest.approx(0, abs=1e-6)


def test_one_anchor_takes_all():
    got = meters(memory(torch.eye(4)), torch.tensor([[3.0, 0, 0, 0], [1.0, 0, 0, 0]]))
    assert got["memory/anchor_entropy"] == pytest.approx(0, abs=1e-6)
    assert got["memory/effective_anchors"] == pytest.approx(1)
    assert got["memory/dead_anchors"] == 3
    assert got["memory/g_norm"] == pytest.approx(2)
    assert got["memory/g_cosine"] == pytest.approx(1)


def test_against_the_definitions():
    generator = torch.Generator().manual_seed(0)
    g, module = torch.randn(9, 6, generator=generator), memory(torch.randn(7, 6, generator=generator), "cosine", 0.1)
    got = meters(module, g)
    anchors = module.anchors_SD.detach()
    similarity = torch.nn.functional.cosine_similarity(g[:, None], anchors, dim=2)
    usage = (similarity / 0.1).softmax(1).mean(0)
    entropy = float(-(usage * usage.log()).sum())
    pairs = torch.nn.functional.cosine_similarity(g[:, None], g, dim=2)
    assert got["memory/anchor_entropy"] == pytest.approx(entropy / math.log(7), rel=1e-5)
    assert got["memory/effective_anchors"] == pytest.approx(math.exp(entropy), rel=1e-5)
    assert got["memory/dead_anchors"] == int((usage < 1 / 70).sum())
    assert got["memory/g_norm"] == pytest.approx(float(g.norm(dim=1).mean()), rel=1e-5)
    assert got["memory/g_cosine"] == pytest.approx(float((pairs.sum() - 9) / 72), abs=1e-5)


def test_what_cannot_be_measured_is_nan_or_full():
    got = meters(memory(torch.ones(1, 3)), torch.ones(1, 3))
    assert math.isnan(got["memory/g_cosine"])
    assert got["memory/anchor_entropy"] == 1


def test_molecules_without_an_embedding_do_not_hide_a_collapse():
    module, collapsed = memory(torch.eye(4), "cosine"), torch.tensor([[3.0, 0, 0, 0], [1.0, 0, 0, 0]])
    with_others = torch.cat([torch.zeros(1, 4), collapsed[:1], torch.zeros(2, 4), collapsed[1:]])
    got = meters(module, with_others, with_others.any(dim=1))
    assert got == pytest.approx(meters(module, collapsed))
    assert got["memory/dead_anchors"] == 3
    nobody = meters(module, collapsed, torch.zeros(2, dtype=torch.bool))
    assert math.isnan(nobody["memory/g_norm"])
    assert math.isnan(nobody["memory/anchor_entropy"])


def test_anchors_start_apart_and_of_length_one():
    torch.manual_seed(0)
    anchors = Memory(128, 256, similarity="cosine", temperature=0.1).anchors_SD.detach()
    assert anchors.norm(dim=1).mean() == pytest.approx(1, abs=0.02)
    cosines = torch.corrcoef(anchors) - torch.eye(128)
    assert cosines.abs().max() < 0.35
    got = meters(memory(anchors, "cosine", 0.1), torch.randn(256, 256))
    assert got["memory/anchor_entropy"] > 0.98
    assert got["memory/dead_anchors"] == 0


@pytest.mark.parametrize("asarray", [torch.tensor, np.array])
def test_an_anchor_with_less_than_a_tenth_of_its_share_is_dead(asarray):
    assert dead_anchors(asarray([0.97, 0.026, 0.004, 0.0])) == 2  # a tenth of a quarter is 0.025
