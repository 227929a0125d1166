"""The structure layer: the formula, what carries gradient, and that inference does not see the batch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from mmsa_dist.structure.layer import StructureLayer
from mmsa_dist.structure.sources import BatchNeighbours, Neighbours, NoNeighbours, TableNeighbours
from tests.fixtures.structure import structure

C, D, S = 6, 4, 5


def layer(normalization="random_walk", similarity="cosine", bandwidth=0.0) -> StructureLayer:
    torch.manual_seed(0)
    options = structure(width=D, anchors=S, similarity=similarity, normalization=normalization, bandwidth=bandwidth)
    return StructureLayer(C, options)


def embeddings(rows: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, C, generator=torch.Generator().manual_seed(seed)).tanh()


def neighbours_of(vertices: list[list[int]], stale: Tensor) -> Neighbours:
    vertices_BK = torch.tensor(vertices)
    distances_BK = torch.zeros(vertices_BK.shape).double()
    return Neighbours(vertices_BK, distances_BK, vertices_BK, stale, torch.tensor(1.0).double())


def dense_operator(vertices: list[list[int]], num_vertices: int, normalization: str) -> Tensor:
    incidence = torch.zeros(num_vertices, len(vertices))
    for edge, members in enumerate(vertices):
        incidence[[edge, *(v for v in members if v >= 0)], edge] = 1
    degree, size = incidence.sum(1), incidence.sum(0)
    inverse = torch.where(degree > 0, 1 / degree, 0)
    core = incidence @ torch.diag(1 / size) @ incidence.T
    root = inverse.sqrt()
    return inverse[:, None] * core if normalization == "random_walk" else root[:, None] * core * root


@pytest.mark.parametrize("width", [4, 6])
def test_the_map_begins_orthogonal(width):
    torch.manual_seed(0)
    module = StructureLayer(6, structure(width=width))
    torch.testing.assert_close(torch.linalg.svdvals(module.theta.weight), torch.ones(width))


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
def test_is_hgnn_over_the_molecules_and_their_neighbours(normalization):
    # Molecule 0 has a stale neighbour (3) and molecule 1; molecule 2 has 0, a repeated one and a missing one.
    vertices, stale, u = [[3, 1, -1], [4, 3, -1], [0, 0, -1]], embeddings(2, seed=2).half(), embeddings(3)
    module = layer(normalization, similarity="dot")
    out = module(u, neighbours_of(vertices, stale))
    operator = dense_operator(vertices, 5, normalization)[:3]
    g = operator @ (torch.cat([u, stale.float()]) @ module.theta.weight.T)
    attention = (g @ module.memory.anchors_SD.T / 0.1).softmax(1)
    torch.testing.assert_close(out.g_BD, g)
    torch.testing.assert_close(out.readout_BD, attention @ module.memory.anchors_SD)
    torch.testing.assert_close(out.lse_B, (g @ module.memory.anchors_SD.T / 0.1).logsumexp(1))


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
def test_neighbours_are_members_by_how_near_they_are(normalization):
    # exp(-d² / (0.5 · 6)), 6 the spread: a neighbour at d² = 3 ln 2 is half a member, one at 3 ln 4 a quarter.
    u, stale = embeddings(1), embeddings(2, seed=2).half()
    vertices_BK = torch.tensor([[1, 2, -1]])
    distances_BK = 3 * torch.tensor([[2.0, 4.0, torch.inf]]).double().log()
    found = Neighbours(vertices_BK, distances_BK, vertices_BK, stale, torch.tensor(6.0).double())
    module = layer(normalization, bandwidth=0.5)
    share = torch.tensor([1, 0.5, 0.25])
    weight = (share if normalization == "random_walk" else share.sqrt()) / 1.75
    g = weight @ (torch.cat([u, stale.float()]) @ module.theta.weight.T)
    for isolated in (True, False):
        torch.testing.assert_close(module(u, found, isolated=isolated).g_BD[0], g)


def test_gradient_reaches_fresh_rows_theta_and_anchors_but_not_stale_rows():
    u, stale = embeddings(2).requires_grad_(), embeddings(1, seed=3).half()
    module = layer()
    out = module(u, neighbours_of([[2], [0]], stale))
    (out.g_BD.square().sum() + out.readout_BD.square().sum()).backward()
    assert u.grad.abs().sum(1).gt(0).all()
    assert module.theta.weight.grad.abs().sum() > 0
    assert module.memory.anchors_SD.grad.abs().sum(1).gt(0).all()
    assert stale.grad is None


def test_joint_mode_lets_a_molecule_hear_the_hyperedges_it_is_in():
    u = embeddings(2)
    found = neighbours_of([[1], [-1]], u[:0].half())
    joint, alone = layer()(u, found).g_BD, layer()(u, found, isolated=True).g_BD
    assert not torch.allclose(joint[1], alone[1])
    torch.testing.assert_close(alone[1], u[1] @ layer().theta.weight.T)


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
@pytest.mark.parametrize("source", [NoNeighbours(), TableNeighbours(embeddings(50, seed=4), 7)], ids=["none", "table"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_isolated_vectors_do_not_depend_on_the_batch(normalization, source, dtype, tolerance):
    u, module = embeddings(33).to(dtype), layer(normalization).to(dtype)

    def embed(batch: int) -> Tensor:
        outputs = []
        for part in u.split(batch):
            index = torch.full((len(part),), -1)
            out = module(part, source.find(part, index), isolated=True)
            # The log-sum-exp is of similarities over the temperature: in units of similarity like the others.
            outputs.append(torch.cat([out.g_BD, out.readout_BD, 0.1 * out.lse_B[:, None]], 1))
        return torch.cat(outputs)

    torch.testing.assert_close(embed(1), embed(33), rtol=0, atol=tolerance)
    torch.testing.assert_close(embed(2), embed(33), rtol=0, atol=tolerance)


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
def test_nor_do_they_where_near_neighbours_count_more(normalization):
    u, module, source = embeddings(33), layer(normalization, bandwidth=0.1), TableNeighbours(embeddings(50, seed=4), 7)
    index = torch.full((33,), -1)
    whole = module(u, source.find(u, index), isolated=True).g_BD
    for row in range(33):
        one = u[row : row + 1]
        alone = module(one, source.find(one, index[:1]), isolated=True).g_BD
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
def test_a_batch_of_one_is_isolated_anyway(normalization):
    u, module = embeddings(1), layer(normalization, bandwidth=0.1)
    found = TableNeighbours(embeddings(50, seed=4), 7).find(u, torch.tensor([-1]))
    joint, alone = module(u, found), module(u, found, isolated=True)
    torch.testing.assert_close(joint.g_BD, alone.g_BD)
    torch.testing.assert_close(joint.readout_BD, alone.readout_BD)


@pytest.mark.parametrize("isolated", [False, True])
def test_random_walk_rows_are_means(isolated):
    """With every vertex at the same place, every molecule stays there."""
    u = embeddings(1).half().float().expand(9, C)
    module = layer()
    found = TableNeighbours(u[:1].expand(5, C), 3).find(u, torch.full((9,), -1))
    out = module(u, found, isolated=isolated)
    torch.testing.assert_close(out.g_BD, (u @ module.theta.weight.T))


def test_runs_in_float32_under_autocast_and_with_bf16_weights():
    u, found = embeddings(4), BatchNeighbours(2).find(embeddings(4), torch.arange(4))
    expected = layer()(u, found)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer()(u, found)
    assert torch.equal(got.g_BD, expected.g_BD)
    out = layer().bfloat16()(u.bfloat16(), found)
    assert out.g_BD.dtype == torch.float32
    torch.testing.assert_close(out.g_BD, expected.g_BD, rtol=2e-2, atol=2e-2)


def test_import_needs_no_faiss():
    code = "import sys, mmsa_dist.structure.layer, mmsa_dist.structure.sources; print('faiss' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
def test_the_unit_of_nearness_is_that_of_the_embeddings(normalization):
    """Embeddings that are a thousandth as long have the same hypergraph."""
    u, table, module = embeddings(9).double(), embeddings(50, seed=4), layer(normalization, bandwidth=0.1).double()

    def embed(unit: float) -> Tensor:
        found = TableNeighbours((table * 1024).half() * unit, 7).find(u * 1024 * unit, torch.full((9,), -1))
        return module(u * 1024 * unit, found, isolated=True).g_BD / unit

    torch.testing.assert_close(embed(2**-10), embed(1.0))  # powers of two, so that float16 rounds alike


@pytest.mark.parametrize("isolated", [True, False])
def test_molecules_that_are_all_alike_are_whole_members(isolated):
    u, module = embeddings(1).half().float(), layer(bandwidth=0.1)
    found = TableNeighbours(u.half().expand(3, C), 2).find(u, torch.tensor([-1]))
    assert found.spread == 0
    torch.testing.assert_close(module(u, found, isolated=isolated).g_BD, u @ module.theta.weight.T)
    far = TableNeighbours((u + 1).half().expand(3, C), 2).find(u, torch.tensor([-1]))
    torch.testing.assert_close(module(u, far, isolated=isolated).g_BD, u @ module.theta.weight.T)
