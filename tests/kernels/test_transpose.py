"""The entries of every vertex as the kernels find them, against the sort of `transpose_csr`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsa_kernels import transpose_csr

pytest.importorskip("triton", reason="triton is not installed")
from mmsa_kernels.hyperedge_memory import transpose
from mmsa_kernels.hyperedge_memory.transpose_kernels import rank_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAYS = pytest.mark.parametrize("most_scanned", [-1, 1 << 14], ids=["counted", "scanned"])


@pytest.fixture
def way(most_scanned, monkeypatch):
    """Small blocks, of which a small problem has several, and one of the two ways."""
    monkeypatch.setattr(transpose, "MOST_SCANNED", most_scanned)
    monkeypatch.setattr(transpose, "SCAN", {"BE": 16, "num_warps": 1})
    monkeypatch.setattr(transpose, "COUNT", {"BE": 16, "num_warps": 1})
    monkeypatch.setattr(transpose, "PLACE", {"BE": 16, "num_warps": 1})
    monkeypatch.setattr(transpose, "RANK", {"BE": 16, "UNROLL": 4, "num_warps": 1})


def assert_sorted(col: Tensor, num_vertices: int) -> None:
    ptr, order = transpose.entries_of_vertices(col.to(DEVICE), num_vertices)
    expected_ptr, _, expected = transpose_csr(torch.tensor([0, len(col)]), col, num_vertices)
    assert ptr.tolist() == expected_ptr.tolist()
    assert order[: ptr[-1]].tolist() == expected[: ptr[-1]].tolist()


@WAYS
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.usefixtures("way")
@settings(deadline=None, max_examples=40)
@given(num_vertices=st.integers(0, 9), cols=st.lists(st.integers(0, 12), max_size=70))
def test_as_a_stable_sort(dtype, num_vertices, cols):
    assert_sorted(torch.tensor(cols, dtype=dtype), num_vertices)


@WAYS
@pytest.mark.usefixtures("way")
def test_all_entries_in_one_column():
    assert_sorted(torch.full((100,), 5), 7)


@WAYS
@pytest.mark.usefixtures("way")
def test_a_column_that_is_none_harms_no_other():
    """Where nobody checks indices, on a GPU, nothing is written outside."""
    ptr, order = transpose.entries_of_vertices(torch.tensor([1, -1, 0, -5, 1], device=DEVICE), 2)
    assert ptr[-1] - ptr[0] == 3
    assert order[ptr[0] : ptr[-1]].tolist() == [2, 0, 4]


@WAYS
@pytest.mark.usefixtures("way")
def test_columns_beyond_2_to_the_31():
    assert_sorted(torch.tensor([2**31, 0, 2**40, 2**32, 1, 0, 2**32 + 1]), 2)


def test_the_most_that_one_vertex_can_have_where_all_are_scanned():
    assert_sorted(torch.full((transpose.MOST_SCANNED,), 3), 4)


def test_in_blocks_as_they_are():
    generator = torch.Generator().manual_seed(0)
    for entries, vertices in (
        (5_000, 500),
        (5_000, 4_000),
        (40_000, 200),
    ):  # scanned; too many vertices, or entries, for that
        assert_sorted(torch.randint(0, 2 * vertices, (entries,), generator=generator), vertices)


def test_in_whatever_order_entries_arrive():
    """On a GPU they are placed in another order on every run; interpreted they arrive in their own."""
    generator = torch.Generator().manual_seed(0)
    col = torch.randint(0, 40, (500,), generator=generator)
    ptr, _, expected = transpose_csr(torch.tensor([0, len(col)]), col, 30)
    placed = torch.cat([entries[torch.randperm(len(entries), generator=generator)] for entries in
                        expected.tensor_split(ptr[1:])]).int()  # fmt: skip
    assert placed[: ptr[-1]].tolist() != expected[: ptr[-1]].tolist()
    order = torch.full_like(placed, -1)
    arguments = (tensor.to(DEVICE) for tensor in (col, ptr.int(), placed))
    order = order.to(DEVICE)
    rank_kernel[(4,)](*arguments, order, 30, BE=128, UNROLL=4, num_warps=4)
    assert order[: ptr[-1]].tolist() == expected[: ptr[-1]].tolist()
    assert order[ptr[-1] :].eq(-1).all()
