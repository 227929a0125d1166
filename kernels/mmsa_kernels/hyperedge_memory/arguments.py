"""What the kernels are given beside tensors as they are: constants, strides, and numbers in pieces."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mmsa_kernels.hyperedge_memory.reference import EPS
from mmsa_kernels.hyperedge_memory.tiles import ENTRIES_AHEAD, Tile, gather_rows, padded_width, pieces_of

ATTENTION_BLOCK = 128
"""To a multiple of this many anchors rows of attention are padded, so that they are read and written 16 bytes at a
time."""


class Anchors:
    """Anchors as the kernels take them: rounded to the dtype of x; for cosine as unit vectors and their lengths."""

    def __init__(self, anchors_SD: Tensor, dtype: torch.dtype, similarity: str) -> None:
        anchors_SD = anchors_SD.contiguous()
        self.count = anchors_SD.shape[0]
        self.unit_SD = self.length_S = anchors_SD  # not read
        if similarity == "cosine":
            anchors_SD = anchors_SD.float()
            length_S1 = torch.linalg.vector_norm(anchors_SD, dim=1, keepdim=True)
            has_direction_S1 = length_S1 > EPS
            length_S1 = torch.where(has_direction_S1, length_S1, 1.0)
            self.unit_SD = anchors_SD = torch.where(has_direction_S1, anchors_SD / length_S1, 0.0)
            self.length_S = length_S1.squeeze(1)
        self.pieces = in_pieces(anchors_SD.to(dtype))


class Attention:
    """Room for the attention of some rows and the gradient of their scores, which one kernel leaves to the next.

    Kernels are told how many blocks of `ATTENTION_BLOCK` numbers a row has, and so know what divides its length.
    """

    def __init__(self, rows: int, anchors: int, like: Tensor) -> None:
        shape = (pieces_of(like.dtype), rows, padded_anchors(anchors))
        self.attention, self.grad_score = (like.new_empty(shape, dtype=dtype_of_pieces(like.dtype)) for _ in range(2))

    def arguments(self, *names: Literal["attention", "grad_score"]) -> dict[str, Any]:
        """Returns the pointers that are asked for, and how far apart rows and planes are."""
        return {f"{name}_ptr": getattr(self, name) for name in names} | {
            "attention_blocks": self.attention.shape[-1] // ATTENTION_BLOCK,
            "attention_plane": self.attention.stride(0),
            "ATTENTION_BLOCK": ATTENTION_BLOCK,
        }


def blocks_of(size: int, count: int) -> int:
    """Returns how many blocks of a size hold so many; Triton's `cdiv` does it in several times as many microseconds."""
    return -(-count // size)


def padded_anchors(anchors: int) -> int:
    """Returns how many numbers a row of attention takes."""
    return blocks_of(ATTENTION_BLOCK, anchors) * ATTENTION_BLOCK


def strides(x_ND: Tensor, stale_VD: Tensor | None) -> dict[str, Any]:
    """Returns how far apart rows are."""
    return {
        "X_STRIDE": x_ND.stride(0),
        "STALE_STRIDE": 0 if stale_VD is None else stale_VD.stride(0),
        "HAS_STALE": stale_VD is not None,
    }


def attention_constants(tile: Tile, width: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the constants of an attention kernel."""
    return {
        "D": width,
        "BM": tile.rows,
        "BN": tile.anchors,
        "BD": padded_width(width),
        "STAGES": tile.stages,
        "PIECES": pieces_of(dtype),
        "num_warps": tile.warps,
    }


def gather_constants(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Returns the constants of a kernel that gathers."""
    rows = gather_rows(width, dtype)
    return {"D": width, "GM": rows, "BD": padded_width(width), "UNROLL": ENTRIES_AHEAD, "num_warps": 1}


def entry_constants(width: int, dtype: torch.dtype) -> dict[str, int]:
    """Returns the constants of `backward_entries_kernel`.

    Its lines have 128 bytes, or more where a thread would hold more than 16 columns of a row. With 4 KiB of loads in
    flight it has 64 registers a thread at most, so that a multiprocessor has room for the 32 programs it can run.
    """
    columns = padded_width(width)
    return {
        "D": width,
        "BD": columns,
        "BI": min(columns, max(128, columns) // dtype.itemsize),
        "UNROLL": min(ENTRIES_AHEAD, 4096 // (columns * dtype.itemsize)),
        "num_warps": 1,
    }


def total_constants(width: int) -> dict[str, int]:
    """Returns the constants of `anchor_totals_kernel`: 16 bytes a thread."""
    columns = padded_width(width)
    return {"D": width, "BD": columns, "UNROLL": ENTRIES_AHEAD, "num_warps": max(1, columns // 128)}


def dtype_of_pieces(dtype: torch.dtype) -> torch.dtype:
    """Returns the half precision that numbers of a dtype enter products in."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def in_pieces(x: Tensor) -> Tensor:
    """Returns the planes of half precision that x is the sum of: x itself, or (3, ...) bfloat16 for float32."""
    if pieces_of(x.dtype) == 1:
        return x.contiguous()
    first = x.bfloat16()
    second = (x - first).bfloat16()
    return torch.stack([first, second, (x - first - second).bfloat16()])


def rows_in_line(x: Tensor) -> Tensor:
    """Returns x, copied where the numbers of a row do not lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()
