"""The 3D encoder: ComENet, from the formulas of Wang et al. 2022 (arXiv 2206.08515).

B molecules, A atoms of molecules with coordinates, P directed edges j → i, D hidden width, F features of an
edge, L orders of Bessel functions and N zeros of each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.encoders.base import Encoder, register
from mmsa_dist.encoders.edge_convolution import EdgeFeatures, edge_convolution
from mmsa_dist.encoders.geometry import RadiusGraph, edge_angles, radius_graph
from mmsa_dist.encoders.sparse_sum import sum_of_segments
from mmsa_dist.encoders.spherical_basis import (
    bessel_zeros,
    spherical_bessel,
    spherical_harmonics,
    zonal_harmonics,
)
from mmsa_dist.runtime.linear import Linear
from mmsa_shards.schema import ATOM_CATEGORIES, AtomColumn

_ATOMIC_NUMBER = int(AtomColumn.ATOMIC_NUMBER)  # a plain integer, for torch.compile cannot trace an IntEnum


@register("comenet")
class ComENet(Encoder):
    """Complete and efficient message passing over a radius graph, from atomic numbers and coordinates.

    x = swish(Emb(Z)); `layers` times `InteractionBlock`; 3 × swish(Linear), Linear, sum over atoms.

    The result is invariant to rotation and translation, but not to reflection of a molecule without a mirror plane: θ
    and cos τ, through which τ enters, do not change, but φ changes its sign and enters through sin φ. Enantiomers thus
    have different vectors; a planar molecule is its own mirror image.

    Ties between atoms at exactly equal distances from a third are broken by the order of atoms, so that invariance to
    that order holds for conformers in general position, not for ideal polyhedra.
    """

    reads = frozenset({"coordinates"})

    def __init__(
        self,
        layers: int = 4,
        hidden: int = 256,
        middle: int = 64,
        radial: int = 3,
        spherical: int = 2,
        cutoff: float = 8.0,
    ) -> None:
        """Builds the encoder.

        Args:
            layers: number of interaction blocks.
            hidden: D of atom vectors and of the result.
            middle: width between the two linear maps from an edge's features to its weights.
            radial: N, zeros of each spherical Bessel function.
            spherical: L, orders l of Bessel functions and harmonics.
            cutoff: of the radius graph, Å.
        """
        super().__init__()
        self.width = hidden
        self.basis = EdgeBasis(radial, spherical, cutoff)
        self.embedding = nn.Embedding(ATOM_CATEGORIES[_ATOMIC_NUMBER].size, hidden)
        self.blocks = nn.ModuleList(
            InteractionBlock(hidden, middle, radial * spherical**2, radial * spherical) for _ in range(layers)
        )
        self.output = nn.Sequential(
            *(layer for _ in range(3) for layer in (Linear(hidden, hidden), nn.SiLU())),
            Linear(hidden, hidden),
        )

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B, width): the sum over a molecule's atoms; zero for molecules without coordinates."""
        # Only atoms with coordinates are kept, so that NaN reaches neither values nor gradients.
        molecule_A = batch.molecule_of_atom_A
        kept_A = batch.has_xyz_B[molecule_A]
        molecule_A = molecule_A[kept_A]
        sizes_B = batch.atom_ptr.diff() * batch.has_xyz_B
        atom_ptr = torch.cat([sizes_B.new_zeros(1), sizes_B.cumsum(0)])

        angular, dihedral = self.basis(batch.xyz_A3[kept_A], atom_ptr, molecule_A)
        x_AD = silu(self.embedding(batch.atoms_A9[kept_A, _ATOMIC_NUMBER].long()))
        for block in self.blocks:
            x_AD = self.block(block, x_AD, angular, dihedral, molecule_A, len(batch))
        return sum_of_segments(atom_ptr, molecule_A)(self.output(x_AD))

    def present(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B,) bool: the molecules that have a conformer."""
        return batch.has_xyz_B


class EdgeBasis(nn.Module):
    """Radius graph and edge features F1 = j_l(z_ln d/c)·Y_lm(θ, φ) and F2 = j_l(z_ln d/c)·Y_l0(τ).

    l < L, n ≤ N, −l ≤ m ≤ l. Radial functions are scaled by √2/|j_{l+1}(z_ln)|, which makes them orthonormal
    on the unit ball (our choice; the linear map that follows could undo it). All are zero at d = c, so that
    an atom enters the cutoff smoothly.
    """

    def __init__(self, radial: int, spherical: int, cutoff: float) -> None:
        super().__init__()
        self.spherical, self.cutoff = spherical, cutoff
        with torch.device("cpu"):  # real values, even if the model is built on the meta device
            zeros_LN = bessel_zeros(spherical, radial)
            scale_LN = torch.stack(
                [2**0.5 / spherical_bessel(order + 1, zeros_N).abs() for order, zeros_N in enumerate(zeros_LN)]
            )
        # Not buffers: a model cast to bfloat16 would cast them too, and the zeros would no longer be zeros.
        self._zeros_LN: list[list[float]] = zeros_LN.tolist()
        self._scale_LN: list[list[float]] = scale_LN.tolist()

    def forward(self, xyz_A3: Tensor, atom_ptr: Tensor, molecule_A: Tensor) -> tuple[EdgeFeatures, EdgeFeatures]:
        """Returns the edges with F1, (N·L², P), and with F2, (N·L, P); arguments as `radius_graph`."""
        graph = radius_graph(xyz_A3, atom_ptr, molecule_A, self.cutoff)
        angles = edge_angles(xyz_A3, graph)
        harmonics = spherical_harmonics(self.spherical, angles.theta_P, angles.phi_P)
        zonal = zonal_harmonics(self.spherical, angles.tau_P)
        angular, dihedral = [], []
        for order, radial_NP in enumerate(self.radial_functions(graph.distance_P)):
            angular.append((radial_NP[:, None] * harmonics[order]).flatten(0, 1))
            dihedral.append(radial_NP * zonal[order])
        return _with_reverse(graph, torch.cat(angular)), _with_reverse(graph, torch.cat(dihedral))

    def radial_functions(self, distance_P: Tensor) -> list[Tensor]:
        """Returns for each l the scaled j_l(z_ln d/c), (N, P), for distances d in Å."""
        functions = []
        for order, (zeros_N, scale_N) in enumerate(zip(self._zeros_LN, self._scale_LN, strict=True)):
            # All zeros at once: every operator is a launch, and a GPU is through with it before the host is.
            argument_NP = torch.stack([distance_P * (zero / self.cutoff) for zero in zeros_N])
            value_NP = spherical_bessel(order, argument_NP)
            functions.append(torch.stack([scale * value_P for scale, value_P in zip(scale_N, value_NP, strict=True)]))
        return functions


class InteractionBlock(nn.Module):
    """One layer of message passing, along F1 and F2 in parallel.

    x = swish(W x); h_k = swish(W_k·EdgeConv_k(x)); h = W_cat[h_1 ‖ h_2] + x; 3 × h = swish(W h) + h;
    x = W_f GraphNorm(h).
    """

    def __init__(self, hidden: int, middle: int, angular: int, dihedral: int) -> None:
        super().__init__()
        self.inward = Linear(hidden, hidden)
        self.angular_conv = EdgeConv(hidden, middle, angular)
        self.dihedral_conv = EdgeConv(hidden, middle, dihedral)
        self.angular_linear = Linear(hidden, hidden)
        self.dihedral_linear = Linear(hidden, hidden)
        self.join = Linear(2 * hidden, hidden)
        self.residuals = nn.ModuleList(Linear(hidden, hidden) for _ in range(3))
        from torch_geometric.nn.norm import GraphNorm  # here, because it takes as long to import as torch

        self.norm = GraphNorm(hidden)
        self.outward = Linear(hidden, hidden)

    def forward(
        self,
        x_AD: Tensor,
        angular: EdgeFeatures,
        dihedral: EdgeFeatures,
        molecule_A: Tensor,
        num_molecules: int,
    ) -> Tensor:
        """Returns (A, D)."""
        x_AD = silu(self.inward(x_AD))
        angular_AD = silu(self.angular_linear(self.angular_conv(x_AD, angular)))
        dihedral_AD = silu(self.dihedral_linear(self.dihedral_conv(x_AD, dihedral)))
        h_AD = torch.cat([angular_AD, dihedral_AD], dim=1)
        h_AD = self.join(h_AD) + x_AD
        for residual in self.residuals:
            h_AD = silu(residual(h_AD)) + h_AD
        # Variances over a molecule's atoms need more than the 8 bits of bfloat16.
        wide_AD = h_AD.to(torch.promote_types(h_AD.dtype, torch.float32))
        return self.outward(self.norm(wide_AD, molecule_A, num_molecules).to(h_AD.dtype))


class EdgeConv(nn.Module):
    """Σ_j w_ij ⊙ x_j + W_root x_i, where linear maps F → middle → D turn an edge's features into w_ij."""

    def __init__(self, hidden: int, middle: int, features: int) -> None:
        super().__init__()
        self.narrow = Linear(features, middle, bias=False)
        self.widen = Linear(middle, hidden, bias=False)
        self.root = Linear(hidden, hidden)

    def forward(self, x_AD: Tensor, edges: EdgeFeatures) -> Tensor:
        """Returns (A, D)."""
        # Two successive linear maps are one, whose weights are its values at the unit vectors.
        unit_FF = torch.eye(self.narrow.in_features, dtype=x_AD.dtype, device=x_AD.device)
        weight_DF = self.widen(self.narrow(unit_FF)).T
        return edge_convolution(x_AD, edges, weight_DF) + self.root(x_AD)


def _with_reverse(graph: RadiusGraph, feature_FP: Tensor) -> EdgeFeatures:
    return EdgeFeatures(graph.sender_P, graph.ptr, feature_FP, feature_FP.detach().index_select(1, graph.reverse_P))
