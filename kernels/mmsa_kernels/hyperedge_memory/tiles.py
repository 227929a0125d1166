"""How the kernels divide their work, by the size of the problem and the device. Needs nothing but torch.

The tables below hold tiles that spill no registers on Hopper under Triton 3.6.0 and 3.7.1, which allocate them
differently (``kernels/benchmarks/compile_report.py``). Where ``tuned/<device>.json`` exists, its tiles come first:
``kernels/benchmarks/tune_hyperedge_memory.py`` writes that file from measurements on the GPU that it runs on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Literal, cast

import torch

AttentionKernel = Literal["forward", "backward_scores", "backward_rows", "backward_anchors"]

SMALLEST_WIDTH = 16
"""Narrower rows are padded to this width."""

LARGEST_WIDTHS: dict[torch.dtype, int] = {torch.bfloat16: 512, torch.float16: 512, torch.float32: 256}
"""The widest rows that registers can hold, for each dtype that the kernels read. The reference has no limit."""

# With fewer programs than this, multiprocessors of a large GPU (an H200 has 132) are idle.
PROGRAMS_WANTED = 128
_BYTES_A_THREAD = 16  # that each thread of a warp gathers at a time
ENTRIES_AHEAD = 8
"""How many entries of a row are loaded at the same time."""


@dataclass(frozen=True)
class Tile:
    """What a program of an attention kernel holds, and how it runs."""

    rows: int
    """Rows of G in a block: a power of two from 16."""
    anchors: int
    """Anchors in a block: a power of two from 16 to 128."""
    warps: int
    stages: int
    """Blocks of anchors (of rows in `backward_anchors`) that are in flight at the same time."""


# By bytes of a number and padded width, the largest tile first: the first one is used that gives a GPU enough programs
# and fits in its shared memory. Hopper's own matrix instructions need 64 rows or more (anchors in `backward_anchors`)
# for every four warps. The first tiles of width 256, and in bf16 those of width 128, are the fastest of those timed on
# an H200. In float32 small tiles are: large ones leave too few registers for the pieces.
_TABLES: dict[AttentionKernel, dict[int, dict[int, tuple[Tile, ...]]]] = {
    "forward": {
        2: {
            64: (Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 32, 4, 2)),
            128: (Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 2)),
            256: (Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2), Tile(16, 64, 4, 2)),
            512: (Tile(32, 64, 8, 2), Tile(16, 64, 8, 2), Tile(16, 16, 8, 2)),
        },
        4: {
            64: (Tile(64, 32, 4, 2), Tile(32, 32, 4, 2), Tile(16, 32, 4, 2)),
            128: (Tile(64, 16, 4, 2), Tile(16, 64, 4, 2)),
            256: (Tile(16, 32, 4, 2),),
        },
    },
    "backward_scores": {
        2: {
            64: (Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(16, 32, 4, 2)),
            128: (Tile(64, 64, 4, 2), Tile(32, 64, 4, 2), Tile(16, 64, 4, 2)),
            256: (Tile(64, 64, 4, 1), Tile(16, 64, 4, 2)),
            512: (Tile(64, 32, 8, 2), Tile(16, 32, 8, 2)),
        },
        4: {
            64: (Tile(64, 32, 4, 2), Tile(32, 32, 4, 2), Tile(16, 32, 4, 2)),
            128: (Tile(64, 32, 4, 2), Tile(16, 32, 4, 2)),
            256: (Tile(16, 32, 4, 2),),
        },
    },
    "backward_rows": {
        2: {
            64: (Tile(64, 64, 4, 3), Tile(16, 64, 4, 3)),
            128: (Tile(64, 64, 4, 3), Tile(16, 64, 4, 3)),
            256: (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(16, 64, 4, 3)),
            512: (Tile(64, 32, 8, 3), Tile(16, 32, 4, 3)),
        },
        4: {
            64: (Tile(64, 32, 4, 2), Tile(16, 32, 4, 2)),
            128: (Tile(64, 32, 4, 2), Tile(16, 32, 4, 2)),
            256: (Tile(32, 16, 4, 3), Tile(16, 32, 4, 3)),
        },
    },
    "backward_anchors": {
        2: {
            64: (Tile(64, 64, 4, 3),),
            128: (Tile(64, 64, 4, 3),),
            256: (Tile(64, 128, 8, 3), Tile(64, 64, 8, 2)),
            512: (Tile(32, 64, 8, 2),),
        },
        4: {
            64: (Tile(32, 64, 4, 2),),
            128: (Tile(32, 64, 4, 2),),
            256: (Tile(16, 32, 4, 2),),
        },
    },
}


def pieces_of(dtype: torch.dtype) -> int:
    """Returns how many pieces of half precision a number is split into before a product."""
    return 3 if dtype == torch.float32 else 1


def padded_width(width: int) -> int:
    """Returns the power of two to which the kernels pad D."""
    return max(SMALLEST_WIDTH, 1 << (width - 1).bit_length())


@lru_cache(maxsize=256)
def attention_tile(
    kernel: AttentionKernel,
    *,
    width: int,
    rows: int,
    anchors: int,
    dtype: torch.dtype,
    device: str | None,
    shared_bytes: int | None,
) -> Tile:
    """Returns the tile for a problem: the measured one, or else one of the table.

    Args:
        kernel: the kernel that will run.
        width: D.
        rows: B.
        anchors: S.
        dtype: of x.
        device: its name in CUDA; None for the table alone.
        shared_bytes: the shared memory that a program may use; None for no limit.
    """
    tuned = tuned_tiles(device) if device else {}
    key = tuned_key(kernel, width=width, rows=rows, anchors=anchors, dtype=dtype)
    if key in tuned:
        return tuned[key]
    tiles = table_tiles(kernel, width, dtype)
    for tile in tiles:
        if (
            kernel == "backward_anchors"
        ):  # splits of the rows give enough programs, but blocks must be more than half full
            enough = anchors > tile.anchors // 2
        else:
            enough = rows > tile.rows * (PROGRAMS_WANTED - 1)
        if enough and (shared_bytes is None or most_shared_bytes(kernel, width, tile, dtype) <= shared_bytes):
            return tile
    return tiles[-1]


def table_tiles(kernel: AttentionKernel, width: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Returns the tiles from which `attention_tile` chooses where nothing was measured, the largest first."""
    table = _TABLES[kernel][dtype.itemsize]
    return table[max(padded_width(width), min(table))]


def most_shared_bytes(kernel: AttentionKernel, width: int, tile: Tile, dtype: torch.dtype) -> int:
    """Returns an upper bound on the shared memory of a program: its own blocks, and those in flight."""
    columns, scores = padded_width(width), tile.rows * tile.anchors
    numbers = {
        # The forward kernel needs its anchors twice, which with one stage it holds in two forms.
        "forward": tile.rows * columns + max(tile.stages, 2) * tile.anchors * columns + 2 * scores,
        "backward_scores": 2 * tile.rows * columns + tile.stages * tile.anchors * columns + 2 * scores,
        "backward_rows": tile.stages * (tile.anchors * columns + scores),
        "backward_anchors": tile.stages * (tile.rows * columns + scores),
    }[kernel]
    shared = 2 * pieces_of(dtype) * numbers
    if kernel in ("backward_rows", "backward_anchors"):  # their sums change layout through shared memory
        owned = tile.rows if kernel == "backward_rows" else tile.anchors
        shared = max(shared, 4 * owned * columns)
    return shared + 4096


def gather_rows(width: int, dtype: torch.dtype) -> int:
    """Returns how many rows of width D a warp gathers at a time, with 16 bytes in each thread."""
    return max(1, 32 * _BYTES_A_THREAD // (padded_width(width) * dtype.itemsize))


def shipped_tiles(dtype: torch.dtype) -> Iterator[tuple[AttentionKernel, int, Tile]]:
    """Yields the kernel, the padded width and the tile of every entry of the tables."""
    for kernel in _TABLES:
        width = SMALLEST_WIDTH
        while width <= LARGEST_WIDTHS[dtype]:
            for tile in table_tiles(kernel, width, dtype):
                yield kernel, width, tile
            width *= 2


def measured_tiles(device: str, dtype: torch.dtype) -> Iterator[tuple[AttentionKernel, int, Tile]]:
    """Yields the kernel, the padded width and the tile of every entry that was measured on a device."""
    for key, tile in tuned_tiles(device).items():
        kernel, width, _, _, name = key.split()
        if name == str(dtype).removeprefix("torch."):
            yield cast(AttentionKernel, kernel), int(width.removeprefix("D=")), tile


def tuned_key(kernel: AttentionKernel, *, width: int, rows: int, anchors: int, dtype: torch.dtype) -> str:
    """Returns the key of a measured tile; rows and anchors are rounded up to powers of four."""
    rounded = [4 ** -(-max(size - 1, 0).bit_length() // 2) for size in (rows, anchors)]
    return f"{kernel} D={padded_width(width)} B={rounded[0]} S={rounded[1]} {str(dtype).removeprefix('torch.')}"


def tuned_file(device: str) -> str:
    """Returns the name of a device's file in ``tuned``."""
    return f"{device.replace(' ', '_').replace('/', '_')}.json"


def tuned_to_json(tiles: dict[str, Tile]) -> str:
    """Returns the content of a file in ``tuned``."""
    return json.dumps({key: asdict(tile) for key, tile in sorted(tiles.items())}, indent=1) + "\n"


@cache
def tuned_tiles(device: str) -> dict[str, Tile]:
    """Returns the tiles that were measured on a device, by `tuned_key`; none where there is no file."""
    file = resources.files(__package__) / "tuned" / tuned_file(device)
    return {key: Tile(**tile) for key, tile in json.loads(file.read_text()).items()} if file.is_file() else {}
