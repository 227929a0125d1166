from __future__ import annotations

import torch

from mmsa_dist.encoders.sparse_sum import SparseSum, segment_ptr, sum_of_segments


def test_segments_with_an_empty_one():
    total = sum_of_segments(torch.tensor([0, 2, 2, 3]), torch.tensor([0, 0, 2]))
    x = torch.tensor([[1.0], [2.0], [4.0]], requires_grad=True)
    torch.testing.assert_close(total(x), torch.tensor([[3.0], [0.0], [4.0]]))
    total(x).backward(torch.tensor([[1.0], [10.0], [100.0]]))
    torch.testing.assert_close(x.grad, torch.tensor([[1.0], [1.0], [100.0]]))


def test_equals_the_matrix_product():
    dense = (torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    row, column = dense.nonzero().T
    back_row, back_column = dense.T.nonzero().T
    sparse = SparseSum(column, segment_ptr(row, 7), back_column, segment_ptr(back_row, 5))
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(sparse(x), dense @ x)
    assert torch.autograd.gradcheck(sparse, x)
