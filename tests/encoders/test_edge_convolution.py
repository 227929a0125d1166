from __future__ import annotations

import torch

from mmsa_dist.encoders.edge_convolution import EdgeFeatures, edge_convolution
from mmsa_dist.encoders.geometry import radius_graph


def edges_and_senders() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    xyz = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    graph = radius_graph(xyz, torch.tensor([0, 5, 6, 9]), torch.tensor([0] * 5 + [1] + [2] * 3), cutoff=2.5)
    return graph.receiver_P, graph.sender_P, graph.ptr, graph.reverse_P


def test_values_and_all_gradients_equal_the_written_out_sum():
    receiver, sender, ptr, reverse = edges_and_senders()
    generator = torch.Generator().manual_seed(1)
    x, features, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((9, 4), (3, len(sender)), (4, 3))
    )
    fast = edge_convolution(x, EdgeFeatures(sender, ptr, features, features.detach()[:, reverse]), weight)
    slow = torch.zeros(9, 4, dtype=torch.float64).index_add(0, receiver, (weight @ features).T * x[sender])
    torch.testing.assert_close(fast, slow)
    out = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(fast, (x, features, weight), out),
        torch.autograd.grad(slow, (x, features, weight), out),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_no_edge_gives_zero():
    none = torch.zeros(0, dtype=torch.int64)
    edges = EdgeFeatures(none, torch.zeros(4, dtype=torch.int64), torch.zeros(2, 0), torch.zeros(2, 0))
    assert torch.equal(edge_convolution(torch.ones(3, 5), edges, torch.ones(5, 2)), torch.zeros(3, 5))
