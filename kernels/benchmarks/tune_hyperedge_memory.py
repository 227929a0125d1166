"""Times tiles of the kernels on this GPU and keeps the fastest in the package, so that no user has to wait for tuning.

    python kernels/benchmarks/tune_hyperedge_memory.py --shape L --shape G
    python kernels/benchmarks/tune_hyperedge_memory.py --shape P --dtype fp32 --similarity cosine --fresh

Writes ``mmsa_kernels/hyperedge_memory/tuned/<device>.json`` after each kernel; tiles for other problems stay there. A
tile is kept by kernel, D, B, S and dtype (`tuned_key`), whatever the similarity and the bank: the last run overrides
earlier ones, so tune with those that you use. Candidates are first compiled in parallel, as in ``compile_report.py``,
and those that spill registers for a similarity, with a bank or without, are not timed. Times come from replays of a
CUDA graph, so they are the GPU's alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # runs from a bare checkout too
from compile_report import Case, Report, compile_all
from cost import SHAPES, Shape
from problem import DTYPES, Problem, add_options
from report import write_report

import mmsa_kernels.hyperedge_memory as package
from mmsa_kernels.hyperedge_memory import launch
from mmsa_kernels.hyperedge_memory.arguments import Inputs, OutputGrads
from mmsa_kernels.hyperedge_memory.tiles import (
    PROGRAMS_WANTED,
    AttentionKernel,
    Tile,
    attention_tile,
    most_shared_bytes,
    tuned_file,
    tuned_key,
    tuned_tiles,
    tuned_to_json,
)

KERNELS: tuple[AttentionKernel, ...] = ("forward", "backward_scores", "backward_rows", "backward_anchors")


def candidates(kernel: AttentionKernel, shape: Shape, dtype: str) -> Iterator[Tile]:
    """Yields tiles whose sums fit in registers and whose blocks are not larger than the problem.

    In half precision, if there are enough rows for all multiprocessors, only tiles of 64 rows or more: Hopper's own
    matrix instructions need them.
    """
    many = shape.rows >= 64 * PROGRAMS_WANTED and DTYPES[dtype].itemsize == 2 and kernel != "backward_anchors"
    for rows, anchors, warps, stages in itertools.product((16, 32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3)):
        scores = rows * anchors / (32 * warps)
        fits = 2 <= scores <= 64 and anchors <= shape.anchors and rows <= shape.rows
        if kernel != "backward_scores":
            owned = anchors if kernel == "backward_anchors" else rows
            fits &= 16 <= owned * shape.width / (32 * warps) <= 128
        if fits and not (many and rows < 64):
            yield Tile(rows, anchors, warps, stages)


def worth_timing(shape: Shape, dtype: str, arch: int, shared_bytes: int) -> dict[AttentionKernel, list[Tile]]:
    """Compiles the candidates of every kernel and returns those that do not spill and fit in shared memory.

    A tile is kept whatever the similarity and the bank, so it must do so for both similarities and with a bank.
    """
    tiles = [
        (kernel, tile)
        for kernel in KERNELS
        for tile in candidates(kernel, shape, dtype)
        if most_shared_bytes(kernel, shape.width, tile, DTYPES[dtype]) <= shared_bytes
    ]
    reports = compile_all(
        [Case(arch, dtype, kernel, shape.width, cosine, tile) for kernel, tile in tiles for cosine in (False, True)]
    )
    good: dict[AttentionKernel, list[Tile]] = {kernel: [] for kernel in KERNELS}
    refused = 0
    for (kernel, tile), pair in zip(tiles, zip(reports, reports, strict=True), strict=True):
        errors = [report for report in pair if isinstance(report, Exception)]
        if errors:
            refused += 1
            print(f"{kernel} {tile}: {type(errors[0]).__name__}: {errors[0]}", file=sys.stderr, flush=True)
        elif all(isinstance(report, Report) and report.keeps_bounds for report in pair):
            good[kernel].append(tile)
    kept = sum(map(len, good.values()))
    print(f"{shape.name}: {len(tiles)} candidates, {kept} without spills, {refused} do not compile", flush=True)
    return good


@dataclass(frozen=True)
class Trial:
    """A tile that was tried."""

    tile: Tile
    ms: float | None
    """The time of the passes that use it; None where a program does not fit on the GPU."""


@dataclass(frozen=True)
class Row:
    """The fastest tile of a kernel."""

    shape: str
    kernel: AttentionKernel
    key: str
    """The key under which its tile is kept."""
    fastest: Trial
    tried: list[Trial]


def tune(problem: Problem, shape: Shape, good: dict[AttentionKernel, list[Tile]]) -> Iterator[Row]:
    """Yields the fastest tile of every kernel, each found with the best tiles so far for the others."""
    best: dict[AttentionKernel, Tile] = {}
    device, limit = launch.device_facts(problem.x_ND.device)
    sizes: dict[str, Any] = {
        "width": shape.width, "rows": shape.rows, "anchors": shape.anchors, "dtype": problem.x_ND.dtype
    }  # fmt: skip
    for kernel in KERNELS:
        tried = []
        for tile in {attention_tile(kernel, device=device, shared_bytes=limit, **sizes), *good[kernel]}:
            call = launches(problem, kernel, best | {kernel: tile})
            try:
                call()  # a call that fails must not fail during the capture
                tried.append(Trial(tile, triton.testing.do_bench_cudagraph(call, rep=20, return_mode="median")))
            except triton.runtime.errors.OutOfResources:
                tried.append(Trial(tile, None))
        fastest = min(tried, key=lambda trial: math.inf if trial.ms is None else trial.ms)
        best[kernel] = fastest.tile
        yield Row(shape.name, kernel, tuned_key(kernel, **sizes), fastest, tried)


def launches(p: Problem, kernel: AttentionKernel, tiles: dict[AttentionKernel, Tile]) -> Callable[[], object]:
    """Returns a call that launches one pass for the forward kernel, and both for the others.

    Args:
        p: the problem.
        kernel: that is timed.
        tiles: of some kernels; the others have that of `attention_tile`.
    """

    def choose_tile(kernel: AttentionKernel, **facts: Any) -> Tile:
        return tiles.get(kernel) or attention_tile(kernel, **facts)

    @torch.no_grad()
    def call() -> None:
        inputs = Inputs(p.x_ND, p.rowptr, p.col, p.weight, p.anchors_SD, p.scale, p.similarity, p.stale_VD)
        results = launch.forward(inputs, choose_tile)
        if kernel != "forward":
            launch.backward(inputs, results, OutputGrads(*p.grads, None), launch.Wanted(True, True, True), choose_tile)

    return call


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="may be repeated (all)")
    add_options(parser)
    parser.add_argument("--to", type=Path, help="folder to write to instead of the package")
    parser.add_argument("--json", type=Path, help="write the time of every tile here too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA GPU", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name()
    _, shared_bytes = launch.device_facts(torch.device("cuda", torch.cuda.current_device()))
    major, minor = torch.cuda.get_device_capability()
    folder = arguments.to or Path(package.__file__).parent / "tuned"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / tuned_file(device)
    kept = dict(tuned_tiles(device))
    if arguments.to and file.exists():
        kept |= {key: Tile(**tile) for key, tile in json.loads(file.read_text()).items()}
    about = {
        "device": f"{device}, torch {torch.__version__}, triton {triton.__version__}",
        "dtype": arguments.dtype,
        "similarity": arguments.similarity,
        "fresh": arguments.fresh,
    }
    rows: list[Row] = []
    for name in arguments.shape or SHAPES:
        shape = SHAPES[name].as_in_training() if arguments.fresh else SHAPES[name]
        good = worth_timing(shape, arguments.dtype, 10 * major + minor, shared_bytes)
        problem = Problem.draw(shape, DTYPES[arguments.dtype], arguments.similarity)
        for row in tune(problem, shape, good):
            ms = "-" if row.fastest.ms is None else f"{row.fastest.ms:.3f}"
            print(f"{shape.name} {row.kernel}: {row.fastest.tile} {ms} ms, of {len(row.tried)} tried", flush=True)
            kept[row.key] = row.fastest.tile
            file.write_text(tuned_to_json(kept))
            rows.append(row)
            if arguments.json:
                write_report(arguments.json, about, rows)
    print(f"kept in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
