"""Times tiles of the kernels on this GPU and keeps the fastest in the package, so that users do not wait for it.

    python kernels/benchmarks/tune_hyperedge_memory.py --shape L --shape G

Writes ``mmsa_kernels/hyperedge_memory/tuned/<device>.json``; what is there for other problems stays.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import triton

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # runs from a bare checkout too
from bench_hyperedge_memory import Problem, both_ways, ours
from cost import SHAPES, Shape

import mmsa_kernels.hyperedge_memory as package
from mmsa_kernels.hyperedge_memory import launch
from mmsa_kernels.hyperedge_memory.tiles import (
    AttentionKernel,
    Tile,
    attention_tile,
    most_shared_bytes,
    tuned_file,
    tuned_key,
    tuned_tiles,
    tuned_to_json,
)

KERNELS: tuple[AttentionKernel, ...] = ("forward", "backward_rows", "backward_anchors")


def candidates(kernel: AttentionKernel, shape: Shape) -> Iterator[Tile]:
    """Yields tiles whose sums fit in registers and whose blocks are not larger than the problem."""
    for rows, anchors, warps, stages in itertools.product((16, 32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3)):
        owned, other = (anchors, rows) if kernel == "backward_anchors" else (rows, anchors)
        sums = owned * shape.width / (32 * warps)
        scores = owned * other / (32 * warps)
        if 16 <= sums <= 128 and scores <= 32 and anchors <= shape.anchors and rows <= shape.rows:
            yield Tile(rows, anchors, warps, stages)


def tune(shape: Shape, dtype: torch.dtype) -> dict[str, Tile]:
    """Returns the fastest tile of every kernel for a shape, each found with the other kernels as they are."""
    problem, best = Problem.draw(shape, dtype), dict[str, Tile]()
    device, limit = launch.device_facts(problem.x_BD.device)
    sizes = {"width": shape.width, "rows": shape.rows, "anchors": shape.anchors, "dtype": dtype}
    now = partial(attention_tile, device=device, shared_bytes=limit, **sizes)
    for kernel in KERNELS:
        call: Callable[[], object] = (
            (lambda: ours(problem)) if kernel == "forward" else lambda: both_ways(ours, problem)
        )
        times = {}
        for tile in {now(kernel), *candidates(kernel, shape)}:
            if most_shared_bytes(kernel, shape.width, tile, dtype) > limit:
                continue
            chosen = {**{k: best.get(tuned_key(k, **sizes)) for k in KERNELS}, kernel: tile}
            with mock.patch.object(
                launch, "attention_tile", lambda k, chosen=chosen, **facts: chosen[k] or attention_tile(k, **facts)
            ):
                try:
                    times[tile] = triton.testing.do_bench(call, warmup=5, rep=20, return_mode="median")
                except triton.runtime.errors.OutOfResources:
                    times[tile] = math.inf
        fastest = min(times, key=lambda tile: times[tile])
        best[tuned_key(kernel, **sizes)] = fastest
        print(f"{shape.name} {kernel}: {fastest} {times[fastest]:.3f} ms, of {len(times)} tried", flush=True)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), action="append", help="may be repeated (all)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA GPU", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name()
    file = Path(package.__file__).parent / "tuned" / tuned_file(device)
    kept = dict(tuned_tiles(device))
    for name in arguments.shape or SHAPES:
        kept |= tune(SHAPES[name], torch.bfloat16)
        file.parent.mkdir(exist_ok=True)
        file.write_text(tuned_to_json(kept))
    print(f"kept in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
