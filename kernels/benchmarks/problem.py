"""The problems of the benchmarks, our operator and its baselines on them, and the check against float64.

N vertices with a gradient, V of a stale bank, B rows, E entries, S anchors, D width.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from cost import Shape
from torch import Tensor
from torch.nn import functional

from mmsa_kernels.hyperedge_memory import launch, triton_op
from mmsa_kernels.hyperedge_memory.reference import hyperedge_memory_attention_reference

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SCALES = {"dot": 4.0, "cosine": 10.0}
CHECKED_ROWS = 512

Operator = Callable[["Problem"], tuple[Tensor, Tensor, Tensor]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a problem other than its shape."""
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16", help="of x, its bank and the anchors (bf16)")
    parser.add_argument("--similarity", choices=list(SCALES), default="dot", help="of g and an anchor (dot)")
    parser.add_argument(
        "--fresh", action="store_true",
        help="no stale bank: x has a row for every entry, each with a gradient, as the structure layer asks for it",
    )  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """The inputs of a shape: N fresh vertices, a stale bank, K neighbours of each of B rows drawn from both."""

    similarity: str
    x_ND: Tensor
    stale_VD: Tensor | None
    rowptr: Tensor
    col: Tensor
    weight: Tensor
    anchors_SD: Tensor
    grads: tuple[Tensor, Tensor]
    """Of g and the read-out."""

    @classmethod
    def draw(cls, shape: Shape, dtype: torch.dtype, similarity: str, device: str = "cuda") -> Problem:
        """Draws a problem; the first entry of each row is the row itself."""
        torch.manual_seed(0)
        draw: dict[str, Any] = {"device": device, "dtype": dtype}
        B, K, D, N = shape.rows, shape.entries_per_row, shape.width, shape.fresh_vertices
        vertices = B + shape.vertices
        stale = torch.empty(vertices - N, D, **draw)
        for part in stale.split(1 << 20):  # in parts, because the numbers are drawn in float32
            part.normal_()
        col = torch.randint(0, vertices, (B, K), device=device)
        col[:, 0] = torch.arange(B, device=device)
        return cls(
            similarity=similarity,
            x_ND=torch.randn(N, D, **draw).requires_grad_(),
            stale_VD=None if shape.fresh else stale,
            rowptr=torch.arange(B + 1, device=device) * K,
            col=col.flatten(),
            weight=torch.full((B * K,), 1 / K, device=device).requires_grad_(),
            anchors_SD=(torch.randn(shape.anchors, D, **draw) * D**-0.5).requires_grad_(),
            grads=(torch.randn(B, D, **draw), torch.randn(B, D, **draw)),
        )

    @property
    def scale(self) -> float:
        """The factor on the similarity that makes attention neither flat nor concentrated on one anchor."""
        return SCALES[self.similarity]

    @property
    def rows(self) -> int:
        """B."""
        return len(self.rowptr) - 1

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that get a gradient."""
        return [self.x_ND, self.weight, self.anchors_SD]


def ours(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the fused kernels."""
    return triton_op.hyperedge_memory_attention_triton(
        p.x_ND, p.rowptr, p.col, p.weight, p.anchors_SD, p.scale, p.similarity, p.stale_VD
    )


def _messages(p: Problem) -> Tensor:
    """Returns the weighted rows of all entries, (E, D), with a gradient for the fresh ones."""
    if p.stale_VD is None:
        gathered = p.x_ND.index_select(0, p.col)
    else:
        # Entries of the other table are spread over this one: in the backward, zeros that are all added to one row
        # would queue up.
        num_fresh, num_stale = len(p.x_ND), len(p.stale_VD)
        fresh = p.x_ND.index_select(0, p.col % num_fresh)
        stale = p.stale_VD.index_select(0, (p.col - num_fresh) % num_stale)
        gathered = torch.where((p.col < num_fresh)[:, None], fresh, stale)
    return gathered * p.weight.to(p.x_ND.dtype)[:, None]


def row_of_entry(p: Problem) -> Tensor:
    """Returns the row of every entry, (E,)."""
    return torch.repeat_interleave(p.rowptr.diff(), output_size=p.col.numel())


def _compared(p: Problem, g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the two factors of the scores."""
    if p.similarity == "dot":
        return g, p.anchors_SD
    return functional.normalize(g), functional.normalize(p.anchors_SD)


def eager(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Computes gather, segment sum and softmax attention as one writes them in PyTorch."""
    g = p.x_ND.new_zeros(p.rows, p.x_ND.shape[1]).index_add(0, row_of_entry(p), _messages(p))
    query, key = _compared(p, g)
    scores = p.scale * (query @ key.T).float()
    return g, scores.softmax(dim=1).to(g.dtype) @ p.anchors_SD, scores.logsumexp(dim=1)


def pyg_and_sdpa(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the scatter of PyTorch Geometric, as in its HypergraphConv, and PyTorch's fused attention."""
    from torch_geometric.utils import scatter

    g = scatter(_messages(p), row_of_entry(p), dim=0, dim_size=p.rows, reduce="sum")
    query, key = _compared(p, g)
    readout = functional.scaled_dot_product_attention(
        query[None, None], key[None, None], p.anchors_SD[None, None], scale=p.scale
    )[0, 0]
    return g, readout, readout.new_empty(0)  # it does not return the log-sum-exp


@triton.jit
def _scatter_kernel(
    grad_g_ptr, weight_ptr, col_ptr, grad_x_ptr, num_fresh, num_entries,
    K: tl.constexpr, D: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)  # [BE]
    column = tl.arange(0, D)  # [D]
    vertex = tl.load(col_ptr + entry, mask=entry < num_entries, other=num_fresh)
    fresh = vertex < num_fresh
    weight = tl.load(weight_ptr + entry, mask=fresh, other=0.0)
    place = (entry // K)[:, None] * D + column[None, :]
    grad_g = tl.load(grad_g_ptr + place, mask=fresh[:, None], other=0.0).to(tl.float32)  # [BE, D]
    tl.atomic_add(grad_x_ptr + vertex[:, None] * D + column[None, :], weight[:, None] * grad_g, mask=fresh[:, None])


def grad_x_atomic(p: Problem, grad_g_BD: Tensor) -> Tensor:
    """Returns the gradient of x by float atomics, whose bits change from run to run: the baseline of determinism."""
    grad_x = torch.zeros(p.x_ND.shape, device=p.x_ND.device)
    entries, width = p.col.numel(), p.x_ND.shape[1]
    _scatter_kernel[(triton.cdiv(entries, 32),)](
        grad_g_BD, p.weight, p.col, grad_x, len(p.x_ND), entries, K=entries // p.rows, D=width, BE=32
    )
    return grad_x.to(p.x_ND.dtype)


def grad_x_deterministic(p: Problem, grad_g_BD: Tensor, row_E: Tensor) -> Tensor:
    """Returns the gradient of x as our backward computes it: by the transposed operator, in a fixed order."""
    grad_x = torch.empty_like(p.x_ND)
    launch.backward_vertices(grad_x, grad_g_BD, row_E, p.col, p.weight)
    return grad_x


def both_ways(operator: Operator, p: Problem) -> list[Tensor]:
    """Runs forward and backward, and returns the gradients."""
    g, readout, _ = operator(p)
    return list(torch.autograd.grad([g, readout], p.leaves, p.grads))


def check(operator: Operator, p: Problem) -> float:
    """Returns the largest of ‖got − float64‖ / ‖float64‖ over outputs, on rows drawn at random, and all gradients."""
    leaves = [leaf.detach() for leaf in p.leaves]
    outputs = [output.detach() for output in operator(p) if output.numel()]
    device = p.x_ND.device
    rows = torch.randperm(p.rows, device=device)[:CHECKED_ROWS]
    degree = len(p.col) // p.rows
    entries = (rows[:, None] * degree + torch.arange(degree, device=device)).flatten()
    expected = _reference(p, rows, entries, *leaves)
    errors = [off(output[rows], want) for output, want in zip(outputs, expected, strict=False)]
    # Gradients flow from these rows alone, so that float64 need not hold the whole problem.
    masked_g, masked_readout = (torch.zeros_like(grad).index_copy(0, rows, grad[rows]) for grad in p.grads)
    got = both_ways(operator, replace(p, grads=(masked_g, masked_readout)))
    wide = [leaf.double().requires_grad_() for leaf in leaves]
    outputs64 = _reference(p, rows, entries, *wide)
    want = torch.autograd.grad(outputs64[:2], wide, [grad[rows].double() for grad in p.grads])
    return max(errors + [off(a, b) for a, b in zip(got, want, strict=True)])


def _reference(p: Problem, rows: Tensor, entries: Tensor, x: Tensor, weight: Tensor, m: Tensor) -> list[Tensor]:
    degree = len(p.col) // p.rows
    col, picked = p.col[entries], None
    if p.stale_VD is not None:
        stale = col >= len(p.x_ND)
        picked = p.stale_VD[col[stale] - len(p.x_ND)].double()
        col[stale] = len(p.x_ND) + torch.arange(int(stale.sum()), device=col.device)
    rowptr = torch.arange(len(rows) + 1, device=col.device) * degree
    return list(
        hyperedge_memory_attention_reference(
            x.double(), rowptr, col, weight[entries].double(), m.double(), p.scale, p.similarity, picked
        )
    )


def off(got: Tensor, expected: Tensor) -> float:
    """Returns ‖got − expected‖ / ‖expected‖."""
    return float((got.double() - expected).norm() / expected.norm())
