from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.encoders.geometry import RadiusGraph, edge_angles, radius_graph


def graph_of(xyz: torch.Tensor, sizes: list[int], cutoff: float = 8.0) -> RadiusGraph:
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    return radius_graph(xyz, ptr, torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)), cutoff)


def edges_of(graph: RadiusGraph) -> list[tuple[int, int]]:
    return list(zip(graph.sender_P.tolist(), graph.receiver_P.tolist(), strict=True))


def test_edges_stay_within_molecules_and_cutoff():
    # Two molecules in the same place; in the first, atoms 0 and 2 are 3 Å apart.
    line = torch.tensor([[0.0, 0, 0], [1.5, 0, 0], [3, 0, 0]])
    graph = graph_of(torch.cat([line, line[:1], line[:2]]), [3, 1, 2], cutoff=2.9)
    assert edges_of(graph) == [(1, 0), (0, 1), (2, 1), (1, 2), (5, 4), (4, 5)]
    assert graph.ptr.tolist() == [0, 1, 3, 4, 4, 5, 6]
    assert graph.reverse_P.tolist() == [1, 0, 3, 2, 5, 4]
    torch.testing.assert_close(graph.distance_P, torch.full((6,), 1.5))


def test_graph_equals_all_pairs_by_loops():
    generator = torch.Generator().manual_seed(0)
    sizes = [4, 1, 11, 7]
    xyz = 3 * torch.randn(sum(sizes), 3, generator=generator)
    molecule = [number for number, size in enumerate(sizes) for _ in range(size)]
    expected = [
        (j, i)
        for i in range(len(xyz))
        for j in range(len(xyz))
        if i != j and molecule[i] == molecule[j] and (xyz[i] - xyz[j]).norm() < 4.0
    ]
    graph = graph_of(xyz, sizes, cutoff=4.0)
    assert edges_of(graph) == expected
    back = list(zip(graph.receiver_P[graph.reverse_P].tolist(), graph.sender_P[graph.reverse_P].tolist(), strict=True))
    assert back == expected


def test_angles_of_four_atoms_by_hand():
    # Distances: 0-1 1.00, 0-2 1.34, 0-3 2.00, 1-2 1.67, 1-3 2.24, 2-3 1.84
    # (n0, n1):  0 (1, 2), 1 (0, 2), 2 (0, 1), 3 (2, 0).
    xyz = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0.6, 1.2, 0], [2, 0, 0]], dtype=torch.float64)
    graph = graph_of(xyz, [4])
    angles = edge_angles(xyz, graph)
    found = {
        edge: tuple(math.degrees(value) for value in row)
        for edge, *row in zip(
            edges_of(graph),
            angles.theta_P.tolist(),
            angles.phi_P.tolist(),
            angles.tau_P.tolist(),
            strict=True,
        )
    }
    # 3 → 0: a = (-2, 0, 0), n(0) = 1 along z, n1(0) = 2 on the side of y. Seen along -x, z turns to y by
    # +90°. The dihedral 1-0-3-2, seen along +x, turns from z to y: -90°.
    assert found[3, 0] == pytest.approx((90, 90, -90))
    # 1 → 0: 1 is n0(0), so that θ is taken to 2 and φ is open; n(1) = 2, dihedral 2-0-1-2.
    assert found[1, 0] == pytest.approx((90, 0, 0))
    # 2 → 0: 2 is n1(0): φ is open; dihedral 1-0-2-1.
    assert found[2, 0] == pytest.approx((90, 0, 0))
    # 0 → 3: a = (2, 0, 0), n(3) = 2 at (-1.4, 1.2, 0): cos θ = -2.8 / (2 · 1.844); 0 is n1(3). A dihedral is
    # the same from both ends.
    assert found[0, 3] == pytest.approx((139.3987, 0, -90), abs=1e-3)
    # 3 → 1: a = (-2, 0, 1), n(1) = 0 at (0, 0, -1): cos θ = -1/√5. Normals a x (r0 - r1) = (0, -2, 0) and
    # a x (r2 - r1) = (-1.2, -1.4, -2.4): cos φ = 1.4 / 3.0265; 0 is turned to 2 against the right hand about
    # a. Dihedral 0-1-3-2 = -φ: the reference atoms are the same two, and the axis is turned round.
    assert found[3, 1] == pytest.approx((116.5651, -62.4467, 62.4467), abs=1e-3)


def test_atom_with_one_neighbour_has_no_angles():
    angles = edge_angles(xyz := torch.tensor([[0.0, 0, 0], [1.4, 0, 0]]), graph_of(xyz, [2]))
    assert torch.stack([angles.theta_P, angles.phi_P, angles.tau_P]).abs().max() == 0


@pytest.mark.parametrize(
    "xyz",
    [
        [[0.0, 0, 0]],
        [[0.0, 0, 0], [0, 0, 0]],
        [[0.0, 0, 0], [1, 0, 0], [2.5, 0, 0]],
        [[0.0, 0, 0], [1, 0, 0], [2.5, 0, 0], [2.5, 0, 0], [2.5, 1, 0]],
        [[0.0, 0, 0], [1, 1, 0], [-1, -1, 0], [2, 2, 0], [9, 9, 0]],
    ],
    ids=["single", "coincident", "collinear", "coincident_in_five", "planar_and_alone"],
)
def test_degenerate_geometry_is_finite(xyz):
    xyz = torch.tensor(xyz, requires_grad=True)
    graph = graph_of(xyz, [len(xyz)])
    angles = edge_angles(xyz, graph)
    values = torch.cat([graph.distance_P, angles.theta_P, angles.phi_P, angles.tau_P])
    assert values.isfinite().all()
    if len(values):
        values.sum().backward()
        assert xyz.grad.isfinite().all()


def test_angle_about_a_line_does_not_hang_on_rounding():
    # Atoms 3, 0, 2 lie on one line but for rounding: about it, n1(0) = 2 has no side.
    xyz = torch.tensor([[0.0, 0, 0], [0.3, 1.0, 0], [1.3, 0, 0], [-3, 0, 0]])
    for shift in (0.0, 1e-7, -1e-7):
        moved = xyz.clone()
        moved[2, 2] += shift
        graph = graph_of(moved, [4])
        phi = edge_angles(moved, graph).phi_P[edges_of(graph).index((3, 0))]
        assert phi == 0
