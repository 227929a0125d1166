"""The hypergraph operator against dense matrices written by the formula, and against PyTorch Geometric."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsa_kernels import hyperedges_from_neighbours, hypergraph_operator, transpose_csr

EXACT = {"rtol": 1e-12, "atol": 1e-12}


@st.composite
def hypergraphs(draw) -> tuple[list[list[int]], int, list[float]]:
    """Member lists (empty, repeated, unsorted), the number of vertices (some in no hyperedge) and weights."""
    num_vertices = draw(st.integers(1, 7))
    members = draw(st.lists(st.lists(st.integers(0, num_vertices - 1), max_size=6), max_size=12))
    weights = [draw(st.sampled_from([0.0, 0.25, 1.0, 3.0])) for _ in members]
    return members, num_vertices, weights


def csr(members: list[list[int]]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([0, *map(len, members)])
    return sizes.cumsum(0), torch.tensor([v for row in members for v in row], dtype=torch.int64)


def dense(rowptr: Tensor, col: Tensor, weight: Tensor, num_columns: int) -> Tensor:
    matrix = torch.zeros(rowptr.numel() - 1, num_columns, dtype=weight.dtype)
    for row in range(matrix.shape[0]):
        for entry in range(int(rowptr[row]), int(rowptr[row + 1])):
            matrix[row, col[entry]] += weight[entry]
    return matrix


def by_formula(
    members: list[list[int]],
    memberships: list[list[float]],
    num_vertices: int,
    weights: list[float],
    normalization: str,
) -> Tensor:
    incidence = torch.zeros(num_vertices, len(members), dtype=torch.float64)
    for edge, vertices in enumerate(members):
        for vertex, membership in zip(vertices, memberships[edge], strict=True):
            incidence[vertex, edge] = max(membership, float(incidence[vertex, edge]))
    w = torch.tensor(weights, dtype=torch.float64)
    size, degree = incidence.sum(0), incidence @ w
    inverse_size = torch.where(size > 0, 1 / size, 0)
    inverse_degree = torch.where(degree > 0, 1 / degree, 0)
    core = incidence @ torch.diag(w * inverse_size) @ incidence.T
    if normalization == "random_walk":
        return torch.diag(inverse_degree) @ core
    return torch.diag(inverse_degree.sqrt()) @ core @ torch.diag(inverse_degree.sqrt())


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
@settings(deadline=None)
@given(hypergraph=hypergraphs(), index_dtype=st.sampled_from([torch.int32, torch.int64]), data=st.data())
def test_operator_is_the_formula(normalization, hypergraph, index_dtype, data):
    members, num_vertices, weights = hypergraph
    rowptr, col = (t.to(index_dtype) for t in csr(members))
    num_rows = data.draw(st.integers(0, num_vertices))
    w = torch.tensor(weights, dtype=torch.float64)
    memberships = [[data.draw(st.sampled_from([1.0, 0.0, 0.25, 1e-3])) for _ in row] for row in members]
    plain = all(value == 1 for row in memberships for value in row)
    expected = by_formula(members, memberships, num_vertices, weights, normalization)
    ptr, column, weight = hypergraph_operator(
        rowptr,
        col,
        num_vertices,
        normalization=normalization,
        edge_weight=w,
        membership=None if plain else torch.tensor([v for row in memberships for v in row], dtype=torch.float64),
        num_rows=num_rows,
    )
    torch.testing.assert_close(dense(ptr, column, weight, num_vertices), expected[:num_rows], **EXACT)
    for row in range(num_rows):
        columns = column[ptr[row] : ptr[row + 1]]
        assert (columns.diff() > 0).all()


@settings(deadline=None)
@given(hypergraph=hypergraphs())
def test_random_walk_rows_sum_to_one_or_are_empty(hypergraph):
    members, num_vertices, _ = hypergraph
    ptr, column, weight = hypergraph_operator(*csr(members), num_vertices)
    isolated = torch.tensor([all(v not in row for row in members) for v in range(num_vertices)])
    sums = dense(ptr, column, weight, num_vertices).sum(1)
    torch.testing.assert_close(sums, (~isolated).float())
    assert torch.equal(ptr.diff() == 0, isolated)


def test_three_vertices_by_hand():
    # e0 = {0, 1}, e1 = {1, 2}: vertex 1 is in both, so half of its weight goes through each.
    ptr, col, weight = hypergraph_operator(torch.tensor([0, 2, 4]), torch.tensor([1, 0, 1, 2]), 3)
    assert ptr.tolist() == [0, 2, 5, 7]
    assert col.tolist() == [0, 1, 0, 1, 2, 1, 2]
    assert weight.tolist() == [0.5, 0.5, 0.25, 0.5, 0.25, 0.5, 0.5]


def test_three_vertices_by_hand_where_one_is_half_a_member():
    # e0 = {0, half of 1}, e1 = {1, 2}: of vertex 1 a third goes through e0, where it meets 2/3 of vertex 0.
    membership = torch.tensor([0.5, 1, 1, 1])
    ptr, col, weight = hypergraph_operator(
        torch.tensor([0, 2, 4]), torch.tensor([1, 0, 1, 2]), 3, membership=membership
    )
    assert ptr.tolist() == [0, 2, 5, 7]
    assert col.tolist() == [0, 1, 0, 1, 2, 1, 2]
    torch.testing.assert_close(weight, torch.tensor([2 / 3, 1 / 3, 2 / 9, 4 / 9, 1 / 3, 0.5, 0.5]))


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
@pytest.mark.parametrize("far", [1e-38, 1e-40, 1e-45])
def test_subnormal_memberships_give_finite_weights(normalization, far):
    # 1/far is infinite in float32. Vertex 2 is a member of e1 alone, and vertex 3 alone in e2.
    membership = torch.tensor([1.0, 1.0, far, far])
    ptr, col, weight = hypergraph_operator(
        torch.tensor([0, 1, 3, 4]), torch.tensor([0, 1, 2, 3]), 4, normalization=normalization, membership=membership
    )
    far = float(membership[2])
    there, back = (far, 1.0) if normalization == "random_walk" else (far**0.5, far**0.5)
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 1, there, 0], [0, back, 0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(dense(ptr, col, weight, 4), expected, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize(("num_vertices", "num_edges"), [(20, 6), (6, 20), (15, 15)])
def test_random_walk_equals_pyg_hypergraph_conv(num_vertices, num_edges):
    conv = pytest.importorskip("torch_geometric.nn").HypergraphConv(4, 4, bias=False)
    torch.nn.init.eye_(conv.lin.weight)
    generator = torch.Generator().manual_seed(num_edges)
    incidence = torch.rand(num_vertices, num_edges, generator=generator) < 0.3
    vertex, edge = incidence.nonzero(as_tuple=True)
    x = torch.randn(num_vertices, 4, generator=generator)
    expected = conv(x, torch.stack([vertex, edge]), num_edges=num_edges)

    members = [incidence[:, e].nonzero().flatten().tolist() for e in range(num_edges)]
    matrix = dense(*hypergraph_operator(*csr(members), num_vertices), num_vertices)
    torch.testing.assert_close(matrix @ x, expected)


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
def test_operator_is_differentiable_in_the_hyperedge_weights(normalization):
    rowptr, col = csr([[0, 1, 2], [2, 3], [], [3, 0]])

    def weights_of_g(w: Tensor) -> Tensor:
        return hypergraph_operator(rowptr, col, 5, normalization=normalization, edge_weight=w)[2]

    w = torch.tensor([0.5, 2.0, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(weights_of_g, (w,))


@pytest.mark.parametrize("normalization", ["random_walk", "symmetric"])
def test_a_hyperedge_of_weight_0_gets_no_gradient(normalization):
    w = torch.tensor([0.0, 1.0], requires_grad=True)
    weight = hypergraph_operator(*csr([[0, 1], [2, 3]]), 4, normalization=normalization, edge_weight=w)[2]
    weight.sum().backward()
    assert w.grad.tolist() == [0, 0]


def test_a_hyperedge_of_100_000_members():
    rowptr, col = torch.tensor([0, 100_000]), torch.arange(100_000)
    ptr, _, weight = hypergraph_operator(rowptr, col, 100_000, num_rows=2)
    assert ptr.tolist() == [0, 100_000, 200_000]
    torch.testing.assert_close(weight, torch.full((200_000,), 1e-5))


def test_hyperedges_hold_self_and_drop_missing_and_repeated_members():
    neighbours = torch.tensor([[4, -1, 4, 3], [1, 1, 0, -1], [-1, -1, -1, -1]])
    rowptr, col, membership = hyperedges_from_neighbours(neighbours)
    assert rowptr.tolist() == [0, 3, 5, 6]
    assert col.tolist() == [0, 3, 4, 0, 1, 2]
    assert membership.tolist() == [1] * 6
    near = torch.tensor([[0.5, 9, 0.25, 0.125], [0.5, 0.5, 0.75, 9], [9, 9, 9, 9]])
    assert hyperedges_from_neighbours(neighbours, near)[2].tolist() == [1, 0.125, 0.5, 0.75, 1, 1]
    with pytest.raises(ValueError, match=r"membership_BK: got shape \(3, 1\), expected .* \(3, 4\)"):
        hyperedges_from_neighbours(neighbours, near[:, :1])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_hyperedges_without_rows_or_neighbours(shape):
    rowptr, col, _ = hyperedges_from_neighbours(torch.empty(shape, dtype=torch.int64))
    assert rowptr.tolist() == list(range(shape[0] + 1))
    assert col.tolist() == list(range(shape[0]))


@settings(deadline=None)
@given(hypergraph=hypergraphs())
def test_transpose(hypergraph):
    members, num_columns, _ = hypergraph
    rowptr, col = csr(members)
    weight = torch.arange(1.0, col.numel() + 1)
    ptr, column, order = transpose_csr(rowptr, col, num_columns)
    matrix = dense(rowptr, col, weight, num_columns)
    torch.testing.assert_close(dense(ptr, column, weight[order], len(members)), matrix.T)


@settings(deadline=None)
@given(hypergraph=hypergraphs(), index_dtype=st.sampled_from([torch.int32, torch.int64]), data=st.data())
def test_transpose_of_the_first_columns(hypergraph, index_dtype, data):
    """Entries of further columns come last, beyond the pointers."""
    members, num_columns, _ = hypergraph
    rowptr, col = (t.to(index_dtype) for t in csr(members))
    first = data.draw(st.integers(0, num_columns))
    ptr, row, order = transpose_csr(rowptr, col, first)
    assert (ptr.dtype, row.dtype, order.dtype) == (torch.int64,) * 3
    assert int(ptr[-1]) == int((col < first).sum())
    assert (col[order[int(ptr[-1]) :]] >= first).all()
    weight = torch.arange(1.0, col.numel() + 1)
    kept = int(ptr[-1])
    expected = dense(rowptr, col, weight, num_columns).T[:first]
    torch.testing.assert_close(dense(ptr, row[:kept], weight[order][:kept], len(members)), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"col": torch.tensor([0, 3])}, "col: got values from 0 to 3, expected vertices 0 to 2"),
        ({"rowptr": torch.tensor([0, 3])}, "rowptr"),
        ({"edge_weight": torch.ones(2)}, r"edge_weight: got shape \(2,\), expected \(1,\)"),
        ({"edge_weight": torch.tensor([-1.0])}, "edge_weight: got a smallest value of -1.0"),
        ({"edge_weight": torch.tensor([torch.nan])}, "edge_weight"),
        ({"membership": torch.ones(1)}, r"membership: got shape \(1,\), expected that of col, \(2,\)"),
        ({"membership": torch.tensor([1.0, -0.5])}, "membership: got a smallest value of -0.5"),
        ({"membership": torch.tensor([1.0, torch.inf])}, "membership: got inf, expected finite values"),
        ({"num_rows": 4}, "num_rows: got 4"),
        ({"rowptr": torch.tensor([0, 2, 1, 2])}, "rowptr: got -1 as the size of a hyperedge"),
        ({"normalization": "hgnn"}, "normalization: got 'hgnn'"),
    ],
)
def test_errors_name_argument_got_and_expected(change, message):
    arguments = {"rowptr": torch.tensor([0, 2]), "col": torch.tensor([0, 1]), "num_vertices": 3} | change
    with pytest.raises(ValueError, match=message):
        hypergraph_operator(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rowptr": torch.tensor([0.0, 2.0])}, "rowptr: got torch.float32, expected torch.int32 or torch.int64"),
        ({"col": torch.tensor([False, True])}, "col: got torch.bool, expected torch.int32 or torch.int64"),
        ({"edge_weight": torch.tensor([1])}, "edge_weight: got torch.int64, expected a floating point dtype"),
        ({"membership": torch.tensor([1, 1])}, "membership: got torch.int64, expected a floating point dtype"),
    ],
)
def test_wrong_dtypes_are_said(change, message):
    arguments = {"rowptr": torch.tensor([0, 2]), "col": torch.tensor([0, 1]), "num_vertices": 3} | change
    with pytest.raises(TypeError, match=message):
        hypergraph_operator(**arguments)
    with pytest.raises(TypeError, match=r"neighbours_BK: got torch\.float32"):
        hyperedges_from_neighbours(torch.tensor([[1.7], [0.2]]))
    with pytest.raises(TypeError, match=r"membership_BK: got torch\.int64"):
        hyperedges_from_neighbours(torch.tensor([[1], [0]]), torch.tensor([[1], [1]]))
