"""Compiles every shipped configuration of the kernels ahead of time, without a GPU, and reports on the result.

    python kernels/benchmarks/compile_report.py                        # sm_80, sm_90 and sm_100, bf16 and float32
    python kernels/benchmarks/compile_report.py --arch 90 --dtype bf16 --width 256 --json report.json

Registers and spills are those that ptxas reports; a spill is a register that is moved to slow memory for lack of space.
The exit code is 1 if a configuration that fits on the architecture spills, or takes more shared memory than its bound.
The tables are made for sm_90; elsewhere a kernel that spills is slower, not wrong.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # runs from a bare checkout too
from problem import DTYPES
from report import write_report

from mmsa_kernels.hyperedge_memory import attention_kernels, gather_kernels, transpose, transpose_kernels
from mmsa_kernels.hyperedge_memory.arguments import (
    ATTENTION_BLOCK,
    attention_constants,
    entry_constants,
    gather_constants,
    total_constants,
)
from mmsa_kernels.hyperedge_memory.tiles import Tile, measured_tiles, most_shared_bytes, pieces_of, shipped_tiles

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that a program may have, by architecture (CUDA programming guide)."""

MEASURED = {90: ("NVIDIA H200",)}
"""The devices for which the package has measured tiles, by architecture."""

NO_TILE = ("aggregate", "backward_entries", "backward_vertices", "anchor_totals")
"""The kernels that have a width and no tile."""

TRANSPOSE = {
    "scan": transpose.SCAN,
    "count": transpose.COUNT,
    "place": transpose.PLACE,
    "rank": transpose.RANK,
}
"""The kernels that read indices alone, and their constants."""

_COUNTS = {
    *("num_fresh", "num_rows", "num_anchors", "num_vertices", "first_row", "last_row", "rows_per_split"),
    *("attention_blocks", "attention_plane", "num_splits", "num_entries"),
}
_INDICES = {"rowptr_ptr", "col_ptr"}
_SHORT_INDICES = {"row_of_entry_ptr", "vertexptr_ptr", "order_ptr", "count_ptr", "arrival_ptr", "placed_ptr"}
_FLOATS = {
    *("lse_ptr", "inverse_length_ptr", "grad_lse_ptr", "partial_ptr", "attention_grad_g_ptr"),
    *("weight_ptr", "grad_weight_ptr"),
}
_PIECES = {"anchors_ptr", "g_pieces_ptr", "grad_readout_ptr", "attention_ptr", "grad_score_ptr"}
_FLOATS_OF_COSINE = {"anchor_length_ptr", "unit_ptr"}  # for a dot product the anchors are passed instead


@dataclass(frozen=True)
class Case:
    """A configuration to compile."""

    arch: int
    dtype: str
    kernel: Any
    width: int
    """0 for kernels that read indices alone."""
    cosine: bool
    tile: Tile | None
    """None for kernels that have none."""
    stale: bool = True
    grad_lse: bool = True
    """Whether there is a stale table, and a gradient of the log-sum-exp: both together need the most registers."""


@dataclass(frozen=True)
class Report:
    """What a configuration compiled to."""

    case: Case
    shared_bound: int
    """That of `most_shared_bytes`, or 64 KiB for a kernel without tiles."""
    registers: int
    spill_bytes: int
    shared_bytes: int
    wgmma: bool
    """Whether it uses Hopper's own matrix instructions."""
    wgmma_serialized: bool
    """Whether ptxas makes them wait for each other."""
    pipelined: bool
    """Whether the next block is copied to shared memory while one is computed."""
    widest_load: int
    """Bytes of the widest load from memory into registers."""

    @property
    def keeps_bounds(self) -> bool:
        """Whether nothing spills and shared memory keeps its bound."""
        return not self.spill_bytes and self.shared_bytes <= self.shared_bound


def cases(archs: list[int], dtypes: list[str], widths: list[int] | None) -> list[Case]:
    """Returns the configurations that the tables and the measured tiles can give, for both similarities."""
    found = []
    for arch, dtype in itertools.product(archs, dtypes):
        tiles = list(shipped_tiles(DTYPES[dtype]))
        for device in MEASURED.get(arch, ()):
            tiles += [tile for tile in measured_tiles(device, DTYPES[dtype]) if tile not in tiles]
        for (kernel, width, tile), cosine in itertools.product(tiles, (False, True)):
            found.append(Case(arch, dtype, kernel, width, cosine, tile))
        widths_of_all = dict.fromkeys(width for _, width, _ in tiles)
        found += [Case(arch, dtype, kernel, width, True, None) for kernel in NO_TILE for width in widths_of_all]
    found += [Case(arch, dtypes[0], kernel, 0, False, None) for arch in archs for kernel in TRANSPOSE]
    return [
        case
        for case in found
        if (widths is None or case.width in (0, *widths))
        and (
            case.tile is None
            or most_shared_bytes(case.kernel, case.width, case.tile, DTYPES[case.dtype]) <= SHARED_LIMIT[case.arch]
        )
    ]


class _NoDevice:
    """Takes the place of Triton's GPU driver: a launch compiles the kernel for an architecture, and does no more."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> str:
        return f"sm_{self._arch}"  # under which a kernel caches what it compiled

    def get_current_stream(self, device: str) -> int:
        return 0


def compile_all(todo: Sequence[Case]) -> Iterator[Report | Exception]:
    """Compiles configurations in parallel and yields, in their order, the report, or the error of one that fails.

    Later launches find them in Triton's cache. The processes are spawned, because the fork of a process that uses a
    GPU must not use it.
    """
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(compile_case, case) for case in todo]:
            try:
                yield future.result()
            except Exception as error:
                yield error


def compile_case(case: Case) -> Report:
    """Compiles one configuration as its launch does, with every other gradient asked for.

    Afterwards this process cannot launch kernels.
    """
    driver.set_active(_NoDevice(case.arch))
    kernel = _kernel(case)
    constants = _constants(case)
    arguments = [_argument(name, case) for name in kernel.arg_names if name not in constants]
    compiled = kernel.warmup(*arguments, grid=(1,), **constants)
    ptx = compiled.asm["ptx"]
    said = _ptxas(ptx, case.arch)
    registers = re.search(r"Used (\d+) registers", said)
    assert registers is not None, said
    loads = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    return Report(
        case=case,
        shared_bound=(
            most_shared_bytes(case.kernel, case.width, case.tile, DTYPES[case.dtype]) if case.tile else 64 << 10
        ),
        registers=int(registers[1]),
        spill_bytes=sum(int(spill) for spill in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)),
        shared_bytes=compiled.metadata.shared,
        wgmma="wgmma.mma_async" in ptx,
        wgmma_serialized="wgmma.mma_async instructions are serialized" in said,
        pipelined="cp.async" in ptx,
        widest_load=max((int(count or 1) * int(bits) // 8 for count, bits in loads), default=0),
    )


def _kernel(case: Case) -> Any:
    name = f"{case.kernel}_kernel"
    return next(
        vars(room)[name] for room in (attention_kernels, gather_kernels, transpose_kernels) if name in vars(room)
    )


def _argument(name: str, case: Case) -> Any:
    """Returns a number for an argument that is one, and a dtype for a pointer, which Triton takes to be aligned."""
    if name in _COUNTS:
        return 0
    if name == "scale":
        return 1.0
    if name in _INDICES:
        return torch.int64
    if name in _SHORT_INDICES:
        return torch.int32
    if name in _FLOATS or (name in _FLOATS_OF_COSINE and case.cosine):
        return torch.float32
    return torch.bfloat16 if name in _PIECES and case.dtype == "fp32" else DTYPES[case.dtype]


def _constants(case: Case) -> dict[str, Any]:
    """Returns the constants of a launch, and its number of warps."""
    dtype = DTYPES[case.dtype]
    if case.kernel in TRANSPOSE:
        return TRANSPOSE[case.kernel]
    if case.tile:
        constants = attention_constants(case.tile, case.width, dtype)
    elif case.kernel == "anchor_totals":
        constants = total_constants(case.width)
    else:
        constants = (entry_constants if case.kernel == "backward_entries" else gather_constants)(case.width, dtype)
    constants |= {"X_STRIDE": case.width, "STALE_STRIDE": case.width * case.stale, "HAS_STALE": case.stale}
    constants |= {"PIECES": pieces_of(dtype), "COSINE": case.cosine, "INTERPRETED": False}
    constants |= {"ATTENTION_BLOCK": ATTENTION_BLOCK}
    constants |= {"HAS_GRAD_G": True, "HAS_GRAD_LSE": case.grad_lse}
    constants |= dict.fromkeys(("WANTS_GRAD_X", "WANTS_GRAD_WEIGHT"), True)
    names = {*_kernel(case).arg_names, "num_warps"}
    return {name: value for name, value in constants.items() if name in names}


def _ptxas(ptx: str, arch: int) -> str:
    """Returns what ptxas says about a kernel."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    program = folder / ("ptxas-blackwell" if arch >= 100 else "ptxas")
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(program), "-v", f"--gpu-name={target[1]}", file.name, "-o", os.devnull]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, choices=list(SHARED_LIMIT), action="append", help="may be repeated")
    parser.add_argument("--dtype", choices=list(DTYPES), action="append", help="may be repeated (bf16 and fp32)")
    parser.add_argument("--width", type=int, action="append", help="D, a power of two; may be repeated (all)")
    parser.add_argument("--json", type=Path, help="write the report here too")
    arguments = parser.parse_args()
    todo = cases(arguments.arch or list(SHARED_LIMIT), arguments.dtype or ["bf16", "fp32"], arguments.width)
    reports = []
    print(f"{'sm':>4} {'dtype':5} {'kernel':17} {'D':>4} {'similarity':10} {'tile':16} "
          f"{'registers':>9} {'spills':>6} {'shared':>7} {'wgmma':10} {'pipelined':9} {'load':>4}")  # fmt: skip
    for report in compile_all(todo):
        if isinstance(report, Exception):
            raise report
        reports.append(report)
        print(_line(report), flush=True)
    bad = [report for report in reports if not report.keeps_bounds]
    print(f"{len(reports)} configurations, {len(bad)} spill or take more than their bound; triton {triton.__version__}")
    if arguments.json:
        write_report(arguments.json, {"triton": triton.__version__}, reports)
    return 1 if bad else 0


def _line(report: Report) -> str:
    case, tile = report.case, report.case.tile
    cut = f"{tile.rows}x{tile.anchors} w{tile.warps} s{tile.stages}" if tile else "-"
    similarity = "cosine" if case.cosine else "dot"
    wgmma = ("serialized" if report.wgmma_serialized else "yes") if report.wgmma else "no"
    return (
        f"{case.arch:>4} {case.dtype:5} {case.kernel:17} {case.width:>4} {similarity:10} {cut:16} "
        f"{report.registers:>9} {report.spill_bytes:>6} {report.shared_bytes >> 10:>6}K {wgmma:10} "
        f"{'yes' if report.pipelined else 'no':9} {report.widest_load:>4}"
    )


if __name__ == "__main__":
    sys.exit(main())
