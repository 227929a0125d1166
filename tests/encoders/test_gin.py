from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.encoders.gin import GIN, MASK_TOKEN, from_hu
from mmsa_dist.runtime.onednn import rows_of_product
from tests.fixtures.batches import (
    DOUBLE,
    MISC,
    SINGLE,
    C,
    Molecule,
    N,
    O,
    batch_of,
    permuted,
    random_molecule,
)


def by_loops(gin: GIN, batch: MoleculeBatch) -> torch.Tensor:
    """Hu's network atom by atom and bond by bond, in inference mode."""
    x = gin.x_embedding1.weight[batch.atoms_A9[:, 0].long()] + gin.x_embedding2.weight[batch.atoms_A9[:, 1].long()]
    if gin.further_features is not None:
        tables = gin.further_features.table.weight.split([12, 12, 10, 6, 6, 2, 2])  # OGB's sizes
        x = torch.stack(
            [
                row + sum(t[c] for t, c in zip(tables, atom[2:], strict=True))
                for row, atom in zip(x, batch.atoms_A9.tolist(), strict=True)
            ]
        )
    for number, (conv, norm) in enumerate(zip(gin.gnns, gin.batch_norms, strict=True)):
        kind, direction = conv.edge_embedding1.weight, conv.edge_embedding2.weight
        rows = [row + kind[4] + direction[0] for row in x]
        for (a, b), bond in zip(batch.bond_ends_E2.tolist(), batch.bonds_E4.tolist(), strict=True):
            edge = kind[5 if bond[0] == MISC else bond[0]] + direction[bond[3]]
            rows[a] = rows[a] + x[b] + edge
            rows[b] = rows[b] + x[a] + edge
        x = norm(conv.mlp(torch.stack(rows)))
        if number < len(gin.gnns) - 1:
            x = x.relu()
    ptr = batch.atom_ptr.tolist()
    return torch.stack([x[ptr[b] : ptr[b + 1]].mean(dim=0) for b in range(len(batch))])


def with_statistics(gin: GIN) -> GIN:
    """Batch norms that do something in inference mode."""
    for norm in gin.batch_norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return gin.eval()


def test_one_layer_by_hand():
    gin = GIN(layers=1, width=2).eval()
    with torch.no_grad():
        for parameter in gin.parameters():
            parameter.zero_()
        gin.x_embedding1.weight[C] = torch.tensor([1.0, 0.0])
        gin.x_embedding1.weight[O] = torch.tensor([0.0, 1.0])
        gin.gnns[0].edge_embedding1.weight[SINGLE] = torch.tensor([0.5, 0.0])
        gin.gnns[0].edge_embedding1.weight[DOUBLE] = torch.tensor([0.0, -2.0])
        gin.gnns[0].edge_embedding1.weight[4] = torch.tensor([0.0, 0.25])  # self-loop
        # (a, b) -> (relu(a), relu(b) + 2 relu(-b))
        gin.gnns[0].mlp[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]))
        gin.gnns[0].mlp[2].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 2]]))
        gin.batch_norms[0].weight.fill_(math.sqrt(1 + 1e-5))  # running variance 1 and eps cancel
    acetaldehyde = batch_of(Molecule([C, C, O], [(0, 1, SINGLE), (1, 2, DOUBLE)]))
    # Sums: C0 (2.5, 0.25), C1 (2.5, -0.75), O2 (1, -0.75).
    expected = torch.tensor([[2.5, 0.25], [2.5, 1.5], [1.0, 1.5]])
    torch.testing.assert_close(gin.encode_atoms(acetaldehyde, acetaldehyde.atoms_A9), expected)
    torch.testing.assert_close(gin(acetaldehyde), expected.mean(dim=0, keepdim=True))


@pytest.mark.parametrize("atoms", ["hu", "ogb"])
def test_equals_network_by_loops(atoms):
    batch = batch_of(*(random_molecule(size, seed=size) for size in (1, 7, 2, 19)))
    batch.atoms_A9[:, 1] = torch.arange(len(batch.atoms_A9)) % 5
    batch.bonds_E4[:, 3] = torch.arange(len(batch.bonds_E4)) % 3
    for column, size in enumerate([12, 12, 10, 6, 6, 2, 2], start=2):
        batch.atoms_A9[:, column] = torch.randint(
            size, (len(batch.atoms_A9),), generator=torch.Generator().manual_seed(column)
        )
    gin = with_statistics(GIN(layers=3, width=16, atoms=atoms)).double()
    torch.testing.assert_close(gin(batch), by_loops(gin, batch))
    for fast, slow in zip(
        torch.autograd.grad(gin(batch).square().sum(), list(gin.parameters())),
        torch.autograd.grad(by_loops(gin, batch).square().sum(), list(gin.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("pool", ["mean", "mean_max"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_rows_that_products_ask_for_are_nobodys(pool, norm):
    batch = batch_of(*(random_molecule(size, seed=size) for size in (37, 1, 29, 50)))
    rows = rows_of_product(len(batch.atoms_A9), batch.device)
    assert rows > len(batch.atoms_A9) == 117 or not torch.backends.mkldnn.is_available()
    gin = GIN(layers=3, width=16, pool=pool, norm=norm).double()
    for _ in range(3):  # statistics that do something
        gin(batch)
    gin.eval()
    atoms_AD = gin.encode_atoms(batch, batch.atoms_A9)
    assert atoms_AD.shape == (117, 16)
    parts = atoms_AD.split(batch.atom_ptr.diff().tolist())
    expected = torch.stack([part.mean(dim=0) for part in parts])
    if pool == "mean_max":
        expected = torch.cat([expected, torch.stack([part.amax(dim=0) for part in parts])], dim=1)
    else:
        torch.testing.assert_close(gin(batch), by_loops(gin, batch))
    torch.testing.assert_close(gin(batch), expected)
    for ours, of_atoms in zip(
        torch.autograd.grad(gin(batch).square().sum(), list(gin.parameters())),
        torch.autograd.grad(expected.square().sum(), list(gin.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, of_atoms)


def test_order_of_atoms_and_molecules_does_not_matter():
    gin = with_statistics(GIN(layers=2, width=16)).double()
    a, b = random_molecule(9, seed=0), random_molecule(5, seed=1)
    there = gin(batch_of(a, b))
    back = gin(batch_of(permuted(b, [3, 0, 4, 1, 2]), permuted(a, [8, 1, 6, 3, 0, 5, 2, 7, 4])))
    torch.testing.assert_close(there, back.flip(0))
    torch.testing.assert_close(gin(batch_of(a)), there[:1])


def test_mean_and_maximum_side_by_side():
    # Ethane's atoms are equal, and so are their shares of the gradient, be it positive or negative.
    ethane = Molecule([C, C], [(0, 1, SINGLE)])
    batch = batch_of(*(random_molecule(size, seed=size) for size in (1, 7, 2, 19)), ethane)
    gin = with_statistics(GIN(layers=3, width=16, pool="mean_max")).double()
    with torch.no_grad():  # numbers that are 0 for all atoms
        gin.batch_norms[-1].weight[:2] = 0
        gin.batch_norms[-1].bias[:2] = 0
    atoms_AD = gin.encode_atoms(batch, batch.atoms_A9)
    atoms = atoms_AD.split(batch.atom_ptr.diff().tolist())
    expected = torch.stack([torch.cat([part.mean(dim=0), part.amax(dim=0)]) for part in atoms])
    assert gin.width == 32 == 2 * gin.atom_width
    torch.testing.assert_close(gin(batch), expected)
    gradient = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    leaves = [gin.x_embedding1.weight, gin.batch_norms[-1].bias]
    for ours, by_hand in zip(
        torch.autograd.grad(gin(batch), leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    ):
        torch.testing.assert_close(ours, by_hand)


def test_weights_of_both_poolings_are_the_same():
    GIN(layers=2, width=8).load_state_dict(GIN(layers=2, width=8, pool="mean_max").state_dict(), strict=True)


@pytest.mark.parametrize("pool", ["mean", "mean_max"])
@pytest.mark.parametrize(
    "molecules",
    [[Molecule([C])] * 3, [Molecule([N]), Molecule([C, O], [(0, 1, SINGLE)])]],
    ids=["no_bond", "one_bond"],
)
def test_molecules_without_bonds(molecules, pool):
    gin = GIN(layers=2, width=8, pool=pool)
    gin(batch_of(*molecules)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in gin.parameters())


def test_published_checkpoint_loads():
    width = 300
    published = {"x_embedding1.weight": (120, width), "x_embedding2.weight": (3, width)}
    for layer in range(5):
        published |= {
            f"gnns.{layer}.mlp.0.weight": (600, width),
            f"gnns.{layer}.mlp.0.bias": (600,),
            f"gnns.{layer}.mlp.2.weight": (width, 600),
            f"gnns.{layer}.mlp.2.bias": (width,),
            f"gnns.{layer}.edge_embedding1.weight": (6, width),
            f"gnns.{layer}.edge_embedding2.weight": (3, width),
        }
        published |= {
            f"batch_norms.{layer}.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")
        }
        published[f"batch_norms.{layer}.num_batches_tracked"] = ()
    state = from_hu({name: torch.full(shape, 2.0) for name, shape in published.items()})
    gin = GIN()
    gin.load_state_dict(state, strict=True)
    assert (gin.x_embedding2.weight == 2).all()


def test_mask_token_is_one_past_the_elements():
    gin = GIN(layers=1, width=8)
    batch = batch_of(random_molecule(6, seed=0))
    masked = batch.atoms_A9.clone()
    masked[2, 0] = MASK_TOKEN
    assert MASK_TOKEN == 119 == gin.x_embedding1.num_embeddings - 1
    assert not torch.equal(gin.encode_atoms(batch, masked), gin.encode_atoms(batch, batch.atoms_A9))


@pytest.mark.parametrize("feature", range(2, 9))
def test_a_masked_atom_shows_none_of_its_features(feature):
    gin = GIN(layers=1, width=8, atoms="ogb")
    batch = batch_of(random_molecule(6, seed=0))
    other = batch.atoms_A9.clone()
    other[2, feature] = 1 - other[2, feature].clamp(max=1)
    assert not torch.equal(gin.encode_atoms(batch, other), gin.encode_atoms(batch, batch.atoms_A9))
    masked = batch.atoms_A9.clone()
    masked[2, 0] = other[2, 0] = MASK_TOKEN
    assert torch.equal(gin.encode_atoms(batch, other), gin.encode_atoms(batch, masked))


@pytest.mark.parametrize("atoms", ["hu", "ogb"])
@pytest.mark.parametrize("pool", ["mean", "mean_max"])
def test_runs_in_bf16(pool, atoms):
    gin = GIN(layers=2, width=16, pool=pool, atoms=atoms)
    batch = batch_of(random_molecule(9, seed=0), random_molecule(5, seed=1))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gin(batch)
    torch.testing.assert_close(mixed.float(), gin(batch), rtol=0.1, atol=0.05)
    mixed.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in gin.parameters())
    assert gin.bfloat16()(batch).dtype == torch.bfloat16


def test_no_layers_is_an_error():
    with pytest.raises(ValueError, match=r"model\.gin\.layers is 0"):
        GIN(layers=0)
