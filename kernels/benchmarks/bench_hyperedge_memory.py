"""Compares the fused operator on a GPU with its baselines and with the floor of the device, in one run.

    python kernels/benchmarks/bench_hyperedge_memory.py                     # shapes P, L, A and G in bf16
    python kernels/benchmarks/bench_hyperedge_memory.py --shape L --json bench.json
    python kernels/benchmarks/bench_hyperedge_memory.py --dtype fp32 --similarity cosine --fresh   # as in training

Needs torch, triton and, for one of the baselines, torch-geometric. First it measures two ceilings, the rates of a large
copy and of a large product of matrices. The floor of a shape is the time to move its bytes at the one rate or to
compute its FLOPs at the other, whichever is longer (``cost.py``). Then it compares every implementation with float64 on
rows drawn at random, and does not time what is wrong. Times are medians over CUDA events, with the L2 cache cleared
before each: of the GPU, or of the host where launching takes longer than the work. After each shape come the GPU's own
times, from replays of a CUDA graph.

Each row is printed and written at once, so that a run that is cut off loses nothing that it measured.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import triton

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # runs from a bare checkout too
from cost import SHAPES, Ceilings, Shape, backward, forward, predicted_s
from problem import (
    DTYPES,
    Operator,
    Problem,
    add_options,
    both_ways,
    check,
    eager,
    grad_x_atomic,
    grad_x_deterministic,
    off,
    ours,
    pyg_and_sdpa,
    row_of_entry,
)
from report import write_report

OURS = "ours"
# Bounds of ‖got − expected‖ / ‖expected‖, as in kernels/README.md.
TOLERANCE = {torch.bfloat16: 1.6e-2, torch.float16: 2e-3, torch.float32: 1e-5}
# The fastest units multiply 16-bit numbers; a product of float32 numbers to full precision takes six of theirs.
PRODUCTS_OF_FLOAT32 = 6


def measure_ceilings(dtype: torch.dtype) -> Ceilings:
    """Measures the rates of a large copy and of large products of random matrices."""
    source = torch.randn(1 << 29, device="cuda", dtype=torch.bfloat16)
    copy_ms = _median_ms(partial(torch.empty_like(source).copy_, source))
    flops_per_s = _product_rate(dtype)
    if dtype == torch.float32:
        flops_per_s = max(flops_per_s, _product_rate(torch.bfloat16) / PRODUCTS_OF_FLOAT32)
    return Ceilings(2 * source.numel() * source.element_size() / copy_ms * 1e3, flops_per_s)


def _product_rate(dtype: torch.dtype) -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * 8192**3 / _median_ms(partial(torch.matmul, a, b)) * 1e3


def _median_ms(call: Callable[[], object]) -> float:
    return triton.testing.do_bench(call, warmup=30, rep=150, return_mode="median")


def _graph_ms(call: Callable[[], object]) -> float:
    return triton.testing.do_bench_cudagraph(call, return_mode="median")


def _peak_bytes(call: Callable[[], object]) -> int:
    """Returns the peak memory of a call, beyond what was allocated before it."""
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
    graph_forward_ms: float | None = None
    graph_both_ms: float | None = None
    """In a CUDA graph, one call after the other: without the host, and with a warm L2 cache."""
    graph_forward_of_floor: float | None = None
    graph_both_of_floor: float | None = None


def bench(shape: Shape, p: Problem, ceilings: Ceilings, implementations: dict[str, Operator]) -> Iterator[Row]:
    """Checks and times every implementation on a shape, ours first, because the others are compared with it.

    Raises:
        Exception: what ours raised. What another raises is printed, and the next one is measured.
    """
    dtype = p.x_ND.dtype
    size = dtype.itemsize
    ahead, back = forward(shape, size), backward(shape, size)
    for name, operator in implementations.items():
        try:
            error = check(operator, p)
            if not error <= TOLERANCE[dtype]:
                _complain(f"{shape.name} {name}: off by {error:.1e}, more than {TOLERANCE[dtype]}: not timed")
                continue
            with torch.no_grad():
                forward_ms = _median_ms(partial(operator, p))
            both_ms = _median_ms(partial(both_ways, operator, p))
            extra = _peak_bytes(partial(both_ways, operator, p))
        except Exception as failure:
            if name == OURS:
                raise
            _complain(f"{shape.name} {name}: {type(failure).__name__}: {failure}")
            continue
        predicted = predicted_s(shape, size, ceilings) if name == OURS else None
        yield Row(
            shape=shape.name,
            implementation=name,
            off=error,
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


def time_in_graph(row: Row, mine: Row | None, operator: Operator, p: Problem) -> None:
    """Fills in the times in a CUDA graph, where the implementation can be captured in one."""
    try:
        with torch.no_grad():
            row.graph_forward_ms = _graph_ms(partial(operator, p))
        row.graph_forward_of_floor = row.forward_of_floor * row.forward_ms / row.graph_forward_ms
        row.graph_both_ms = _graph_ms(partial(both_ways, operator, p))
        row.graph_both_of_floor = row.both_of_floor * row.both_ms / row.graph_both_ms
    except Exception as failure:
        _complain(f"{row.shape} {row.implementation} in a CUDA graph: {type(failure).__name__}: {failure}")
    of_mine = (None, None) if mine is None or mine is row else (mine.graph_forward_ms, mine.graph_both_ms)
    ahead = _told(row.graph_forward_ms, row.graph_forward_of_floor, of_mine[0])
    both = _told(row.graph_both_ms, row.graph_both_of_floor, of_mine[1])
    print(f"{row.shape} {row.implementation:10} in a CUDA graph: forward {ahead}; both {both}", flush=True)


def _told(ms: float | None, of_floor: float | None, mine_ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.3f} ms, {of_floor:.2f} of the floor" + (f", {ms / mine_ms:.1f}x ours" if mine_ms else "")


def compare_atomic(shape: Shape, p: Problem) -> None:
    """Prints what the fixed order of additions costs."""
    in_order = partial(grad_x_deterministic, p, p.grads[0], row_of_entry(p).int())
    atomic = partial(grad_x_atomic, p, p.grads[0])
    times = _median_ms(in_order), _median_ms(atomic)
    print(
        f"{shape.name} gradient of x: in order {times[0]:.3f} ms, atomic {times[1]:.3f} ms, "
        f"{times[0] / times[1]:.2f}x; they differ by {off(atomic(), in_order().double()):.0e}",
        flush=True,
    )


def _ours_of(rows: list[Row]) -> Row | None:
    return next((row for row in rows if row.implementation == OURS), None)


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(
    shapes: list[Shape],
    dtype: torch.dtype,
    similarity: str,
    ceilings: Ceilings,
    implementations: dict[str, Operator],
    keep: Callable[[list[Row]], None],
    device: str = "cuda",
) -> list[Row]:
    """Measures one shape after the other and prints each row; after a shape that fails, it goes on with the next.

    All rows so far go to `keep` whenever there is one more, and after each shape.
    """
    rows: list[Row] = []
    _print_head()
    for shape in shapes:
        torch._dynamo.reset()  # every shape is compiled separately
        first = len(rows)
        try:
            p = Problem.draw(shape, dtype, similarity, device)
            for row in bench(shape, p, ceilings, implementations):
                rows.append(row)
                _print_row(row, _ours_of(rows[first:]))
                keep(rows)
            # After all the others, because a failed capture might leave something behind.
            for row in rows[first:]:
                time_in_graph(row, _ours_of(rows[first:]), implementations[row.implementation], p)
            if shape.name == "L":
                compare_atomic(shape, p)
        except Exception:
            _complain(f"{shape.name}: failed\n{traceback.format_exc()}")
        keep(rows)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="may be repeated (all)")
    add_options(parser)
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
        _complain("torch-geometric is not installed: its baseline is left out")
    dtype = DTYPES[arguments.dtype]
    shapes = [SHAPES[name] for name in arguments.shape or SHAPES]
    if arguments.fresh:
        shapes = [shape.as_in_training() for shape in shapes]
    ceilings = measure_ceilings(dtype)
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
    copied, multiplied = ceilings.bytes_per_s / 1e12, ceilings.flops_per_s / 1e12
    bank = "no bank" if arguments.fresh else "a stale bank"
    print(f"{device}: copy {copied:.2f} TB/s, {arguments.dtype} product {multiplied:.0f} TFLOP/s")
    print(f"{arguments.dtype}, {arguments.similarity}, {bank}", flush=True)

    def keep(rows: list[Row]) -> None:
        if arguments.json:
            about = {
                "device": device,
                "dtype": arguments.dtype,
                "similarity": arguments.similarity,
                "fresh": arguments.fresh,
                "ceilings": asdict(ceilings),
            }
            write_report(arguments.json, about, rows)

    rows = run(shapes, dtype, arguments.similarity, ceilings, implementations, keep)
    return 0 if {row.shape for row in rows if row.implementation == OURS} == {shape.name for shape in shapes} else 1


def _print_head() -> None:
    """Prints the head of the table; `x ours` is the time over that of ours."""
    print(" " * 22 + f"| {'forward':^52} | {'forward and backward':^40} |")
    print(
        f"{'':3}{'':11}{'off':>7} | {'ms':>9}{'GB/s':>7}{'TFLOP/s':>8}{'of floor':>9}{'predicted':>10}{'x ours':>8}  "
        f"| {'ms':>9}{'of floor':>9}{'predicted':>10}{'x ours':>8}     | extra MB",
        flush=True,
    )


def _print_row(row: Row, mine: Row | None) -> None:
    ahead, both = ("-", "-") if mine is None else (
        f"{row.forward_ms / mine.forward_ms:.1f}", f"{row.both_ms / mine.both_ms:.1f}"
    )  # fmt: skip
    predicted, predicted_both = (
        "-" if ms is None else f"{ms:.3f}" for ms in (row.predicted_forward_ms, row.predicted_both_ms)
    )
    print(
        f"{row.shape:3}{row.implementation:11}{row.off:7.0e} | {row.forward_ms:9.3f}{row.forward_gb_s:7.0f}"
        f"{row.forward_tflop_s:8.0f}{row.forward_of_floor:9.2f}{predicted:>10}{ahead:>8}  | {row.both_ms:9.3f}"
        f"{row.both_of_floor:9.2f}{predicted_both:>10}{both:>8}     | {row.extra_mb:8.0f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
