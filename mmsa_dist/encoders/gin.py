"""The 2D encoder: the graph isomorphism network of Hu et al. 2020 (arXiv 1905.12265).

B molecules, A atoms, E bonds, D width, H width within an MLP, R rows: the atoms, and padding in inference, N rows of an
embedding table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.encoders.base import AtomEncoder, register
from mmsa_dist.encoders.dropout import Dropout
from mmsa_dist.encoders.sparse_sum import SparseSum, segment_ptr, sum_of_segments, sum_rows
from mmsa_dist.runtime.linear import Linear, LinearReLU
from mmsa_dist.runtime.onednn import rows_of_product
from mmsa_shards.schema import ATOM_CATEGORIES, BOND_CATEGORIES, AtomColumn, BondColumn

# As plain integers, for torch.compile cannot trace an IntEnum.
_ATOMIC_NUMBER, _CHIRALITY = int(AtomColumn.ATOMIC_NUMBER), int(AtomColumn.CHIRALITY)
_BOND_TYPE, _BOND_DIRECTION = int(BondColumn.TYPE), int(BondColumn.DIRECTION)

#: Atomic-number index of a masked atom: one past the last real one, 119 as in Hu et al.
MASK_TOKEN = ATOM_CATEGORIES[_ATOMIC_NUMBER].size

# Hu et al. have single, double, triple, aromatic, self-loop, masked. OGB's fifth type, "misc", is a bond of
# unspecified type (dative, zero-order, ...); that is what "masked" means, so it uses that row.
_SELF_LOOP, _UNSPECIFIED = 4, 5
_BOND_TYPES = 6
_BOND_DIRECTIONS = BOND_CATEGORIES[_BOND_DIRECTION].size

_FURTHER = slice(_CHIRALITY + 1, len(AtomColumn))


@register("gin")
class GIN(AtomEncoder):
    """Graph isomorphism network with bond embeddings; atom vectors are pooled over a molecule.

    Layer: x_i ← Norm(MLP(Σ_{j ∈ N(i) ∪ {i}} x_j + e_ij)), ReLU after all but the last, then dropout;
    e_ii is the embedding of a separate bond type. Each feature has an embedding (each layer its own for bonds): atomic
    number and chirality of atoms, or all of OGB's features; type and direction of bonds.

    With Hu's features, parameters have the names and shapes of Hu's published checkpoints, except the chirality
    table: it has OGB's five rows instead of Hu's three, in the same order; `from_hu` converts a checkpoint.
    """

    reads = frozenset({"graph"})

    def __init__(
        self,
        layers: int = 5,
        width: int = 300,
        dropout: float = 0.0,
        norm: Literal["batch", "layer"] = "batch",
        pool: Literal["mean", "mean_max"] = "mean",
        atoms: Literal["hu", "ogb"] = "hu",
    ) -> None:
        """Builds the encoder.

        Args:
            layers: number of message-passing layers, at least 1.
            width: D of atom vectors.
            dropout: probability, after every layer.
            norm: ``batch``, over the atoms of this rank's batch, as Hu et al.; ``layer``, over the features of one
                atom, so that a vector does not depend on the rest of the batch, even in training.
            pool: from atom vectors to a molecule's: ``mean``, as Hu et al.; ``mean_max``, the mean concatenated with
                the maximum, which other atoms do not dilute. It has no weights, but doubles the inputs of the next
                layer.
            atoms: features of atoms: ``hu``, atomic number and chirality; ``ogb``, also degree, charge, hydrogens,
                radical electrons, hybridization, aromaticity and ring membership, which do not always follow from the
                graph: an aromatic nitrogen may have a hydrogen, an oxygen a charge.

        Raises:
            ValueError: `layers` is below 1.
        """
        super().__init__()
        if layers < 1:
            raise ValueError(f"model.gin.layers is {layers}; a GIN needs at least 1 layer")
        self.atom_width = width
        self.width = 2 * width if pool == "mean_max" else width
        self._pool = pool
        self.x_embedding1 = nn.Embedding(MASK_TOKEN + 1, width)
        self.x_embedding2 = nn.Embedding(ATOM_CATEGORIES[_CHIRALITY].size, width)
        nn.init.xavier_uniform_(self.x_embedding1.weight)
        nn.init.xavier_uniform_(self.x_embedding2.weight)
        self.further_features = _FurtherFeatures(width) if atoms == "ogb" else None
        self.gnns = nn.ModuleList(GINConv(width) for _ in range(layers))
        norms: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
        self.batch_norms = nn.ModuleList(norms[norm](width) for _ in range(layers))  # named as in published checkpoints
        self.dropout = Dropout(dropout)

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B, D), the mean of each molecule's atom vectors; or (B, 2 D), the mean and the maximum."""
        if self._pool == "mean" and not self.training and isinstance(self.batch_norms[-1], nn.BatchNorm1d):
            # All that follows the last ReLU is then linear, so it is applied to the mean of a molecule's rows.
            x_RD, neighbours, bonds_R9 = self._layers(len(self.gnns) - 1, batch, batch.atoms_A9)
            last = cast(GINConv, self.gnns[-1])
            hidden_RH = last.hidden(x_RD, neighbours, bonds_R9)
            mean_BD: Tensor = self.batch_norms[-1](last.mlp[2](_mean(hidden_RH, batch)))
            return mean_BD
        atoms_AD = self.encode_atoms(batch, batch.atoms_A9)
        mean_BD = _mean(atoms_AD, batch)
        if self._pool == "mean":
            return mean_BD
        # Not segment_reduce, which gives each of several tied atoms the whole of a negative gradient (torch 2.13). Nor
        # include_self=False over zeros, which take a share of the gradient where the maximum is 0.
        molecule_AD = batch.molecule_of_atom_A[:, None].expand_as(atoms_AD)
        max_BD = torch.full_like(mean_BD, -torch.inf).scatter_reduce(0, molecule_AD, atoms_AD, "amax")
        return torch.cat([mean_BD, max_BD], dim=1)

    def encode_atoms(self, batch: MoleculeBatch, atoms_A9: Tensor) -> Tensor:
        """See `AtomEncoder`."""
        x_RD, _, _ = self._layers(len(self.gnns), batch, atoms_A9)
        return x_RD[: len(atoms_A9)]

    def _layers(self, number: int, batch: MoleculeBatch, atoms_A9: Tensor) -> tuple[Tensor, SparseSum, Tensor]:
        """Runs the first `number` layers; returns (R, D), and the other inputs of the next layer.

        The first A rows are those of the atoms. In inference padding may follow, atoms without bonds, so that no
        product has to copy its rows in order to pad them.
        """
        rows = len(atoms_A9)
        if not (self.training or torch.compiler.is_compiling()):  # compiled code would depend on the number
            rows = rows_of_product(rows, atoms_A9.device)
        atoms_R9 = functional.pad(atoms_A9, (0, 0, 0, rows - len(atoms_A9)))
        neighbours, bonds_R9 = _neighbourhoods(batch, rows)
        atoms_R2 = atoms_R9[:, [_ATOMIC_NUMBER, _CHIRALITY]].long()
        x_RD = self.x_embedding1(atoms_R2[:, 0]) + self.x_embedding2(atoms_R2[:, 1])
        if self.further_features is not None:
            x_RD = self.further_features(x_RD, atoms_R9)
        for layer in range(number):
            x_RD = self.block(self._layer, layer, x_RD, neighbours, bonds_R9)
        return x_RD, neighbours, bonds_R9

    def _layer(self, number: int, x_AD: Tensor, neighbours: SparseSum, bonds_A9: Tensor) -> Tensor:
        x_AD = self.batch_norms[number](self.gnns[number](x_AD, neighbours, bonds_A9))
        return self.dropout(x_AD if number == len(self.gnns) - 1 else x_AD.relu())

    def present(self, batch: MoleculeBatch) -> Tensor:
        """Returns (B,) bool: every molecule has a graph."""
        return torch.ones(len(batch), dtype=torch.bool, device=batch.device)


class GINConv(nn.Module):
    """One layer: MLP(Σ_{j ∈ N(i) ∪ {i}} x_j + e_ij), with an MLP D → 2D → D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Index 1 is the ReLU in published checkpoints; the Identity keeps the names mlp.0 and mlp.2.
        self.mlp = nn.Sequential(LinearReLU(width, 2 * width), nn.Identity(), Linear(2 * width, width))
        self.edge_embedding1 = _CountEmbedding(_BOND_TYPES, width)
        self.edge_embedding2 = _CountEmbedding(_BOND_DIRECTIONS, width)
        nn.init.xavier_uniform_(self.edge_embedding1.weight)
        nn.init.xavier_uniform_(self.edge_embedding2.weight)

    def forward(self, x_AD: Tensor, neighbours: SparseSum, bonds_A9: Tensor) -> Tensor:
        """Returns (A, D).

        Args:
            x_AD: (A, D) atom vectors.
            neighbours: sum over the bonded atoms of each atom.
            bonds_A9: (A, 9): an atom's numbers of bonds of each type, then of each direction, self-loop included.
        """
        out_AD: Tensor = self.mlp[2](self.hidden(x_AD, neighbours, bonds_A9))
        return out_AD

    def hidden(self, x_AD: Tensor, neighbours: SparseSum, bonds_A9: Tensor) -> Tensor:
        """Returns (A, 2D): the input of the second linear map of the MLP."""
        # Σ_j e_ij depends only on the number of bonds of each kind: it is a product with each table.
        types_A6, directions_A3 = bonds_A9.to(x_AD.dtype).split([_BOND_TYPES, _BOND_DIRECTIONS], dim=1)
        sum_AD = self.edge_embedding1(x_AD + neighbours(x_AD), types_A6)
        hidden_AH: Tensor = self.mlp[0](self.edge_embedding2(sum_AD, directions_A3))
        return hidden_AH


class _FurtherFeatures(nn.Module):
    """Adds the embeddings of OGB's further features; a masked atom has none of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [category.size for category in ATOM_CATEGORIES[_FURTHER]]
        # The tables of all features, stacked.
        self.table = _CountEmbedding(sum(sizes), width)
        nn.init.xavier_uniform_(self.table.weight)
        self.first_row_7: Tensor
        self.register_buffer("first_row_7", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)

    def forward(self, x_AD: Tensor, atoms_A9: Tensor) -> Tensor:
        """Returns (A, D): `x_AD` itself, changed in place."""
        row_A7 = atoms_A9[:, _FURTHER].long() + self.first_row_7
        shown_A7 = (atoms_A9[:, _ATOMIC_NUMBER, None] != MASK_TOKEN).to(x_AD.dtype).expand(row_A7.shape)
        return self.table(x_AD, x_AD.new_zeros(len(x_AD), self.table.num_embeddings).scatter(1, row_A7, shown_A7))


class _CountEmbedding(nn.Embedding):
    """Adds the rows of the table, weighted by their counts, to `sum_AD` in place."""

    def forward(self, sum_AD: Tensor, counts_AN: Tensor) -> Tensor:  # type: ignore[override]
        return sum_AD.addmm_(counts_AN, self.weight.to(counts_AN.dtype))


def from_hu(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts a state dict that Hu et al. published (``model_gin/*.pth``) for a `GIN` with Hu's features.

    The two chiralities of OGB that Hu's table lacks (other, misc) get the vector of "unspecified".

    Args:
        published: the state dict of upstream's ``GNN``, loaded with ``weights_only=True``.
    """
    state = dict(published)
    chirality_3D = state["x_embedding2.weight"]
    missing = ATOM_CATEGORIES[_CHIRALITY].size - chirality_3D.shape[0]
    state["x_embedding2.weight"] = torch.cat([chirality_3D, chirality_3D[:1].expand(missing, -1)])
    return state


def _mean(rows_RD: Tensor, batch: MoleculeBatch) -> Tensor:
    """Returns (B, D): the mean over each molecule's atoms, which are the first A rows."""
    rows_AD = rows_RD[: batch.atoms_A9.shape[0]]
    sums_BD = sum_of_segments(batch.atom_ptr, batch.molecule_of_atom_A)(rows_AD)
    return sums_BD / batch.atom_ptr.diff()[:, None].to(sums_BD.dtype)


def _neighbourhoods(batch: MoleculeBatch, rows: int) -> tuple[SparseSum, Tensor]:
    """Returns the sum over bonded atoms and the bond counts (R, 9) float32, each bond counted at both ends."""
    num_bonds = batch.bonds_E4.shape[0]
    # Entry k of the 2E ends is one end of bond k mod E; its other end is entry k ± E.
    atom_2E, order_2E = batch.bond_ends_E2.T.reshape(-1).sort(stable=True)
    ptr = segment_ptr(atom_2E, rows)
    other_2E = batch.bond_ends_E2.flip(1).T.reshape(-1)[order_2E]
    neighbours = SparseSum(other_2E, ptr, other_2E, ptr)  # a bond has no direction: the matrix is symmetric

    type_E = batch.bonds_E4[:, _BOND_TYPE].long()
    type_E = torch.where(type_E == BOND_CATEGORIES[_BOND_TYPE].size - 1, _UNSPECIFIED, type_E)
    direction_E = batch.bonds_E4[:, _BOND_DIRECTION].long() + _BOND_TYPES
    one_hot_99 = torch.eye(_BOND_TYPES + _BOND_DIRECTIONS, device=batch.device)
    bonds_E9 = one_hot_99[type_E] + one_hot_99[direction_E]
    bonds_R9 = sum_rows(bonds_E9, order_2E % max(num_bonds, 1), ptr)
    return neighbours, bonds_R9 + one_hot_99[_SELF_LOOP] + one_hot_99[_BOND_TYPES]
