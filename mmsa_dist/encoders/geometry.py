"""The radius graph, and the distance and three angles by which ComENet describes each edge.

The formulas are those of Wang et al. 2022, arXiv 2206.08515: one distance and three angles per edge, measured at
reference atoms within one hop, determine the geometry. B molecules, A atoms, P directed edges j → i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmsa_dist.encoders.sparse_sum import segment_ptr

# Sine of the angle below which two directions count as collinear. Rounding of float32 coordinates tilts a
# plane's normal by about 1e-6 / sine, so above this the angle about the line is accurate to 0.01 radian.
_COLLINEAR = 1e-4


@dataclass(frozen=True)
class RadiusGraph:
    """Directed edges j → i between atoms of one molecule closer than a cutoff, sorted by i, then j."""

    receiver_P: Tensor
    """(P,) int64: atom i."""
    sender_P: Tensor
    """(P,) int64: atom j."""
    ptr: Tensor
    """(A + 1,) int64: edges into atom i are ptr[i]:ptr[i + 1]."""
    reverse_P: Tensor
    """(P,) int64: the number of the edge i → j."""
    distance_P: Tensor
    """(P,) Å."""


@dataclass(frozen=True)
class EdgeAngles:
    """Angles of each edge j → i, radians; zero where an angle is undefined.

    With a = r_i − r_j, n0(i) and n1(i) the nearest and second nearest neighbour of i, n(i) = n0(i), or n1(i)
    if n0(i) is j, and n(j) likewise but never i:
    """

    theta_P: Tensor
    """(P,) in [0, π]: between a and r_n(i) − r_i."""
    phi_P: Tensor
    """(P,) in (−π, π]: from the plane of a and n0(i) to that of a and n1(i), right-handed about a; zero if j
    is one of the two."""
    tau_P: Tensor
    """(P,) in (−π, π]: dihedral n(i)–i–j–n(j), zero if cis."""


def radius_graph(xyz_A3: Tensor, atom_ptr: Tensor, molecule_A: Tensor, cutoff: float) -> RadiusGraph:
    """Returns the pairs of atoms of one molecule that are closer than `cutoff`.

    Computes all pairs within molecules and none between them: Σ n² distances for molecules of n atoms.

    Args:
        xyz_A3: (A, 3) Å.
        atom_ptr: (B + 1,) int64: atoms of molecule b are rows atom_ptr[b]:atom_ptr[b + 1].
        molecule_A: (A,) int64: the molecule of each atom.
        cutoff: Å.
    """
    num_atoms = xyz_A3.shape[0]
    first_A = atom_ptr[:-1][molecule_A]
    size_A = atom_ptr[1:][molecule_A] - first_A
    atom_A = torch.arange(num_atoms, device=xyz_A3.device)
    receiver = torch.repeat_interleave(atom_A, size_A)
    place = torch.arange(receiver.shape[0], device=xyz_A3.device)
    sender = first_A[receiver] + place - (size_A.cumsum(0) - size_A)[receiver]
    distance = _length(xyz_A3[receiver] - xyz_A3[sender])
    near = (distance < cutoff) & (receiver != sender)
    receiver_P, sender_P = receiver[near], sender[near]
    # The k-th edge sorted by (sender, receiver) is the reverse of the k-th sorted by (receiver, sender).
    reverse_P = sender_P.argsort(stable=True)
    return RadiusGraph(receiver_P, sender_P, segment_ptr(receiver_P, num_atoms), reverse_P, distance[near])


def edge_angles(xyz_A3: Tensor, graph: RadiusGraph) -> EdgeAngles:
    """Returns the angles of every edge; values and gradients are finite wherever the coordinates are.

    An angle is undefined, and set to zero, where its reference atom does not exist (an atom with fewer than
    two neighbours), coincides with the atom itself or lies on the axis of the angle.

    Args:
        xyz_A3: (A, 3) Å.
        graph: the edges.
    """
    nearest_A2 = _two_nearest(graph)
    i, j = graph.receiver_P, graph.sender_P
    axis = xyz_A3[i] - xyz_A3[j]
    n0, n1 = nearest_A2[i].unbind(dim=1)
    reference_i = torch.where(n0 == j, n1, n0)
    reference_j = torch.where(nearest_A2[j, 0] == i, nearest_A2[j, 1], nearest_A2[j, 0])
    to_n0, to_n1 = _vectors(xyz_A3, i, n0), _vectors(xyz_A3, i, n1)
    to_reference_i, to_reference_j = _vectors(xyz_A3, i, reference_i), _vectors(xyz_A3, j, reference_j)

    theta = _angle(_length(_cross(axis, to_reference_i)), _dot(axis, to_reference_i))
    phi = _angle_about(axis, to_n0, to_n1).masked_fill((n0 == j) | (n1 == j), 0.0)
    # By IUPAC's convention the sign of a dihedral is right-handed about the bond, seen from i to j.
    tau = _angle_about(-axis, to_reference_i, to_reference_j)
    return EdgeAngles(theta, phi, tau)


def _two_nearest(graph: RadiusGraph) -> Tensor:
    """Returns (A, 2) int64: nearest and second nearest neighbour of each atom, -1 if there is none.

    Among neighbours at exactly the same distance, the first in the order of atoms wins.
    """
    by_distance = graph.distance_P.detach().argsort(stable=True)
    by_receiver = by_distance[graph.receiver_P[by_distance].argsort(stable=True)]
    sender_sorted = torch.cat([graph.sender_P[by_receiver], graph.sender_P.new_full((2,), -1)])
    place_A2 = graph.ptr[:-1, None] + torch.arange(2, device=graph.ptr.device)
    return sender_sorted[place_A2].masked_fill(place_A2 >= graph.ptr[1:, None], -1)


def _vectors(xyz_A3: Tensor, atom_P: Tensor, other_P: Tensor) -> Tensor:
    """Returns the vectors (P, 3) from atoms to others, zero where the other is missing (-1)."""
    vector_P3 = xyz_A3[other_P.clamp(min=0)] - xyz_A3[atom_P]
    return vector_P3.masked_fill((other_P < 0)[:, None], 0.0)


def _angle_about(axis_P3: Tensor, p_P3: Tensor, q_P3: Tensor) -> Tensor:
    """Returns the right-handed angle from p to q about `axis`; zero where p or q is on the axis."""
    normal_p, normal_q = _cross(axis_P3, p_P3), _cross(axis_P3, q_P3)
    sine = _length(axis_P3) * _dot(axis_P3, _cross(p_P3, q_P3))
    limit_P = _COLLINEAR**2 * _dot(axis_P3, axis_P3)
    off_axis = (_dot(normal_p, normal_p) > limit_P * _dot(p_P3, p_P3)) & (
        _dot(normal_q, normal_q) > limit_P * _dot(q_P3, q_P3)
    )
    return _angle(sine.where(off_axis, 0.0), _dot(normal_p, normal_q).where(off_axis, 0.0))


def _angle(sine: Tensor, cosine: Tensor) -> Tensor:
    """Returns atan2, but zero with zero gradient where both are zero."""
    undefined = (sine == 0) & (cosine == 0)
    return torch.atan2(sine, cosine.masked_fill(undefined, 1.0))


def _length(v_P3: Tensor) -> Tensor:
    """Returns Euclidean lengths, with zero gradient at zero."""
    square = _dot(v_P3, v_P3)
    return square.where(square > 0, 1.0).sqrt().where(square > 0, 0.0)


def _dot(a_P3: Tensor, b_P3: Tensor) -> Tensor:
    return (a_P3 * b_P3).sum(dim=-1)


def _cross(a_P3: Tensor, b_P3: Tensor) -> Tensor:
    return torch.linalg.cross(a_P3, b_P3)
