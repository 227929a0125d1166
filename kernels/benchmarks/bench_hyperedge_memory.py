"""The fused operator on a GPU, beside its baselines and the floor of the device, in one run.

    python kernels/benchmarks/bench_hyperedge_memory.py                     # shapes P, L, A and G in bf16
    python kernels/benchmarks/bench_hyperedge_memory.py --shape L --json bench.json

Needs torch, triton and, for one of the baselines, torch-geometric. First two ceilings are measured, a large copy and
a large product of bf16 matrices; the floor of a shape is what it must move over the one or compute over the other,
whichever takes longer (``cost.py``). Then every implementation is held against float64 on rows drawn at random; what
is wrong is not timed. Times are medians over CUDA events, with the L2 cache cleared before each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # runs from a bare checkout too
from cost import SHAPES, Ceilings, Shape, backward, forward, predicted_s

from mmsa_kernels.hyperedge_memory import launch
from mmsa_kernels.hyperedge_memory.reference import hyperedge_memory_attention_reference

SCALE = 4.0
OURS = "ours"
# Of ‖got − expected‖ / ‖expected‖ in bf16, as in kernels/README.md.
TOLERANCE = 1.6e-2
CHECKED_ROWS = 512

Operator = Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass
class Problem:
    """The inputs of a shape: B fresh rows, a stale bank, K neighbours of each row drawn from both."""

    x_BD: Tensor
    stale_VD: Tensor
    rowptr: Tensor
    col: Tensor
    weight: Tensor
    anchors_SD: Tensor
    grads: tuple[Tensor, Tensor]
    """Of g and the read-out."""

    @classmethod
    def draw(cls, shape: Shape, dtype: torch.dtype) -> Problem:
        """Draws a problem; the first entry of each row is the row itself."""
        torch.manual_seed(0)
        draw: dict[str, Any] = {"device": "cuda", "dtype": dtype}
        B, K, V, D = shape.rows, shape.entries_per_row, shape.vertices, shape.width
        stale = torch.empty(V, D, **draw)
        for part in stale.split(1 << 20):  # never all of it in float32
            part.normal_()
        col = torch.randint(0, B + V, (B, K), device="cuda")
        col[:, 0] = torch.arange(B, device="cuda")
        return cls(
            x_BD=torch.randn(B, D, **draw).requires_grad_(),
            stale_VD=stale,
            rowptr=torch.arange(B + 1, device="cuda") * K,
            col=col.flatten(),
            weight=torch.full((B * K,), 1 / K, device="cuda").requires_grad_(),
            anchors_SD=(torch.randn(shape.anchors, D, **draw) * D**-0.5).requires_grad_(),
            grads=(torch.randn(B, D, **draw), torch.randn(B, D, **draw)),
        )

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [self.x_BD, self.weight, self.anchors_SD]


def ours(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """The fused kernels."""
    return launch.hyperedge_memory_attention_triton(
        p.x_BD, p.rowptr, p.col, p.weight, p.anchors_SD, SCALE, "dot", p.stale_VD
    )


def _gathered(p: Problem) -> Tensor:
    """The rows of all entries, (E, D), with a gradient for the fresh ones."""
    # Entries of the other table are spread over this one: all on one row, their zeros would queue up in the backward.
    num_fresh, num_stale = len(p.x_BD), len(p.stale_VD)
    fresh = p.x_BD.index_select(0, p.col % num_fresh)
    stale = p.stale_VD.index_select(0, (p.col - num_fresh) % num_stale)
    return torch.where((p.col < num_fresh)[:, None], fresh, stale)


def _rows(p: Problem) -> Tensor:
    return torch.repeat_interleave(p.rowptr.diff(), output_size=p.col.numel())


def eager(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Gather, segment sum, softmax attention, as one writes it in PyTorch."""
    messages = _gathered(p) * p.weight.to(p.x_BD.dtype)[:, None]
    g = p.x_BD.new_zeros(len(p.x_BD), p.x_BD.shape[1]).index_add(0, _rows(p), messages)
    scores = SCALE * (g @ p.anchors_SD.T).float()
    return g, scores.softmax(dim=1).to(g.dtype) @ p.anchors_SD, scores.logsumexp(dim=1)


def pyg_and_sdpa(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Scatter of PyTorch Geometric, as its HypergraphConv does it, and PyTorch's fused attention."""
    from torch_geometric.utils import scatter

    messages = _gathered(p) * p.weight.to(p.x_BD.dtype)[:, None]
    g = scatter(messages, _rows(p), dim=0, dim_size=len(p.x_BD), reduce="sum")
    m = p.anchors_SD[None, None]
    readout = functional.scaled_dot_product_attention(g[None, None], m, m, scale=SCALE)[0, 0]
    return g, readout, readout.new_empty(0)  # it keeps the log-sum-exp to itself


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
    """The gradient of x by float atomics, whose bits change from run to run: what determinism is compared with."""
    grad_x = torch.zeros(p.x_BD.shape, device="cuda")
    entries, width = p.col.numel(), p.x_BD.shape[1]
    _scatter_kernel[(triton.cdiv(entries, 32),)](
        grad_g_BD, p.weight, p.col, grad_x, len(p.x_BD), entries, K=entries // len(p.x_BD), D=width, BE=32
    )
    return grad_x.to(p.x_BD.dtype)


def grad_x_deterministic(p: Problem, grad_g_BD: Tensor) -> Tensor:
    """The gradient of x as our backward takes it, by the transposed operator."""
    grad_x = torch.empty_like(p.x_BD)
    launch._grad_x(grad_x, grad_g_BD, p.rowptr, p.col, p.weight)
    return grad_x


def both_ways(operator: Operator, p: Problem) -> list[Tensor]:
    """Forward and backward."""
    g, readout, _ = operator(p)
    return list(torch.autograd.grad([g, readout], p.leaves, p.grads))


def check(operator: Operator, p: Problem) -> float:
    """Returns the largest of ‖got − float64‖ / ‖float64‖ over outputs, on rows drawn at random, and all gradients."""
    leaves = [leaf.detach() for leaf in p.leaves]
    outputs = [output.detach() for output in operator(p) if output.numel()]
    rows = torch.randperm(len(p.x_BD), device="cuda")[:CHECKED_ROWS]
    degree = len(p.col) // len(p.x_BD)
    entries = (rows[:, None] * degree + torch.arange(degree, device="cuda")).flatten()
    expected = _reference(p, rows, entries, *leaves)
    errors = [_off(output[rows], want) for output, want in zip(outputs, expected, strict=False)]
    # Gradients: of these rows alone, so that float64 need not hold the whole problem.
    masked = tuple(torch.zeros_like(grad).index_copy(0, rows, grad[rows]) for grad in p.grads)
    got = both_ways(operator, Problem(**{**vars(p), "grads": masked}))
    wide = [leaf.double().requires_grad_() for leaf in leaves]
    outputs64 = _reference(p, rows, entries, *wide)
    want = torch.autograd.grad(outputs64[:2], wide, [grad[rows].double() for grad in masked])
    return max(errors + [_off(a, b) for a, b in zip(got, want, strict=True)])


def _reference(p: Problem, rows: Tensor, entries: Tensor, x: Tensor, weight: Tensor, m: Tensor) -> list[Tensor]:
    degree = len(p.col) // len(p.x_BD)
    col = p.col[entries]
    stale = col >= len(p.x_BD)
    picked = p.stale_VD[col[stale] - len(p.x_BD)].double()
    renumbered = col.clone()
    renumbered[stale] = len(p.x_BD) + torch.arange(int(stale.sum()), device="cuda")
    rowptr = torch.arange(len(rows) + 1, device="cuda") * degree
    return list(
        hyperedge_memory_attention_reference(
            x.double(), rowptr, renumbered, weight[entries].double(), m.double(), SCALE, "dot", picked
        )
    )


def _off(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def measure_ceilings() -> Ceilings:
    """Measures a large copy and a large product of bf16 matrices of random numbers."""
    source = torch.randn(1 << 29, device="cuda", dtype=torch.bfloat16)
    copy_ms = _median_ms(partial(torch.empty_like(source).copy_, source))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_ms = _median_ms(partial(torch.matmul, a, b))
    return Ceilings(2 * source.numel() * source.element_size() / copy_ms * 1e3, 2 * 8192**3 / product_ms * 1e3)


def _median_ms(call: Callable[[], object]) -> float:
    return triton.testing.do_bench(call, warmup=30, rep=150, return_mode="median")


def _peak_bytes(call: Callable[[], object]) -> int:
    """Returns how much memory a call takes at once, beyond what there was before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


@dataclass
class Row:
    """A line of the table."""

    shape: str
    implementation: str
    off: float
    forward_ms: float
    both_ms: float
    forward_gb_s: float
    forward_tflop_s: float
    forward_of_floor: float
    both_of_floor: float
    predicted_forward_ms: float | None
    predicted_both_ms: float | None
    extra_mb: float
    """Peak memory of forward and backward beyond the inputs."""


def bench(shape: Shape, ceilings: Ceilings, implementations: dict[str, Operator]) -> Iterator[Row]:
    """Checks and times every implementation on a shape."""
    torch._dynamo.reset()  # every shape is compiled for itself
    p = Problem.draw(shape, torch.bfloat16)
    ahead, back = forward(shape, 2), backward(shape, 2)
    for name, operator in implementations.items():
        try:
            off = check(operator, p)
            if not off <= TOLERANCE:
                print(f"{shape.name} {name}: off by {off:.1e}, more than {TOLERANCE}: not timed", file=sys.stderr)
                continue
            with torch.no_grad():
                forward_ms = _median_ms(lambda operator=operator: operator(p))
            both_ms = _median_ms(lambda operator=operator: both_ways(operator, p))
            extra = _peak_bytes(lambda operator=operator: both_ways(operator, p))
        except torch.OutOfMemoryError:
            print(f"{shape.name} {name}: out of memory", file=sys.stderr)
            continue
        predicted = predicted_s(shape, 2, ceilings) if name == OURS else None
        yield Row(
            shape=shape.name,
            implementation=name,
            off=off,
            forward_ms=forward_ms,
            both_ms=both_ms,
            forward_gb_s=ahead.bytes / forward_ms / 1e6,
            forward_tflop_s=ahead.flops / forward_ms / 1e9,
            forward_of_floor=ahead.floor_s(ceilings) * 1e3 / forward_ms,
            both_of_floor=(ahead + back).floor_s(ceilings) * 1e3 / both_ms,
            predicted_forward_ms=predicted and predicted[0] * 1e3,
            predicted_both_ms=predicted and sum(predicted) * 1e3,
            extra_mb=extra / 1e6,
        )
    if shape.name == "L":
        in_order, atomic = (partial(f, p, p.grads[0]) for f in (grad_x_deterministic, grad_x_atomic))
        times = _median_ms(in_order), _median_ms(atomic)
        print(
            f"L gradient of x: in order {times[0]:.3f} ms, atomic {times[1]:.3f} ms, {times[0] / times[1]:.2f}x; they "
            f"differ by {_off(atomic(), in_order().double()):.0e}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="may be repeated (all)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA GPU: without one, compile_report.py and the tests are what can be run", file=sys.stderr)
        return 2
    implementations: dict[str, Operator] = {
        OURS: ours,
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False),
    }
    try:
        import torch_geometric  # noqa: F401

        implementations["PyG + SDPA"] = pyg_and_sdpa
    except ImportError:
        print("torch-geometric is not installed: its baseline is left out", file=sys.stderr)
    ceilings = measure_ceilings()
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
    copied, multiplied = ceilings.bytes_per_s / 1e12, ceilings.flops_per_s / 1e12
    print(f"{device}: copy {copied:.2f} TB/s, bf16 product {multiplied:.0f} TFLOP/s")
    rows = [row for name in arguments.shape or SHAPES for row in bench(SHAPES[name], ceilings, implementations)]
    print_table(rows)
    if arguments.json:
        report = {"device": device, "ceilings": asdict(ceilings), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0 if {row.shape for row in rows if row.implementation == OURS} == set(arguments.shape or SHAPES) else 1


def print_table(rows: list[Row]) -> None:
    """Prints every line; `x ours` is how many times longer it takes than ours."""
    first = {row.shape: row for row in rows if row.implementation == OURS}
    print(" " * 22 + f"| {'forward':^52} | {'forward and backward':^40} |")
    print(
        f"{'':3}{'':11}{'off':>7} | {'ms':>9}{'GB/s':>7}{'TFLOP/s':>8}{'of floor':>9}{'predicted':>10}{'x ours':>8}  "
        f"| {'ms':>9}{'of floor':>9}{'predicted':>10}{'x ours':>8}     | extra MB"
    )
    for row in rows:
        mine = first.get(row.shape)
        ahead, both = ("-", "-") if mine is None else (
            f"{row.forward_ms / mine.forward_ms:.1f}", f"{row.both_ms / mine.both_ms:.1f}"
        )  # fmt: skip
        predicted, predicted_both = (
            "-" if ms is None else f"{ms:.3f}" for ms in (row.predicted_forward_ms, row.predicted_both_ms)
        )
        print(
            f"{row.shape:3}{row.implementation:11}{row.off:7.0e} | {row.forward_ms:9.3f}{row.forward_gb_s:7.0f}"
            f"{row.forward_tflop_s:8.0f}{row.forward_of_floor:9.2f}{predicted:>10}{ahead:>8}  | {row.both_ms:9.3f}"
            f"{row.both_of_floor:9.2f}{predicted_both:>10}{both:>8}     | {row.extra_mb:8.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
