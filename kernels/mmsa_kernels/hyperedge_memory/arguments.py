"""What the launches hand to the kernels: tensors in the form that kernels read, strides, and constants."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mmsa_kernels.hyperedge_memory.reference import EPS
from mmsa_kernels.hyperedge_memory.tiles import ENTRIES_AHEAD, Tile, gather_rows, padded_width, pieces_of

ATTENTION_BLOCK = 128
"""Rows of attention are padded to a multiple of this many anchors, so that they are read and written 16 bytes at a
time."""


class Inputs:
    """The inputs of a call as the kernels read them: the numbers of a row side by side, the anchors in pieces."""

    def __init__(
        self,
        x_ND: Tensor,
        rowptr: Tensor,
        col: Tensor,
        weight: Tensor,
        anchors_SD: Tensor,
        scale: float,
        similarity: str,
        stale_VD: Tensor | None,
    ) -> None:
        self.x_ND = rows_in_line(x_ND)
        self.rowptr, self.col, self.weight = rowptr.contiguous(), col.contiguous(), weight.contiguous()
        self.stale_VD = None if stale_VD is None else rows_in_line(stale_VD)
        self.anchors_SD, self.anchors = anchors_SD, Anchors(anchors_SD, x_ND.dtype, similarity)
        self.rows, self.width, self.dtype = rowptr.numel() - 1, x_ND.shape[1], x_ND.dtype
        self.scale, self.cosine, self.interpreted = scale, similarity == "cosine", not x_ND.is_cuda

    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the first arguments of a kernel that gathers: both tables of vertices, and which rows it gathers."""
        stale_VD = self.x_ND if self.stale_VD is None else self.stale_VD  # not read where there is none
        return self.x_ND, stale_VD, self.rowptr, self.col

    def sizes(self) -> dict[str, Any]:
        """Returns the sizes of these, and the distances between their rows."""
        return {
            "num_fresh": self.x_ND.shape[0],
            "num_rows": self.rows,
            "X_STRIDE": self.x_ND.stride(0),
            "STALE_STRIDE": 0 if self.stale_VD is None else self.stale_VD.stride(0),
            "HAS_STALE": self.stale_VD is not None,
        }


class Anchors:
    """Anchors as the kernels read them: in the dtype of x; for cosine, unit vectors and their lengths."""

    def __init__(self, anchors_SD: Tensor, dtype: torch.dtype, similarity: str) -> None:
        anchors_SD = anchors_SD.contiguous()
        self.count = anchors_SD.shape[0]
        self.unit_SD = self.length_S = anchors_SD  # not read
        if similarity == "cosine":
            anchors_SD = anchors_SD.float()
            length_S1 = torch.linalg.vector_norm(anchors_SD, dim=1, keepdim=True)
            no_direction_S1 = length_S1 <= EPS  # of NaN neither this nor its opposite holds, and it must stay NaN
            length_S1 = torch.where(no_direction_S1, 1.0, length_S1)
            self.unit_SD = anchors_SD = torch.where(no_direction_S1, 0.0, anchors_SD / length_S1)
            self.length_S = length_S1.squeeze(1)
        self.pieces = in_pieces(anchors_SD.to(dtype))


class OutputGrads:
    """The gradients that arrive at the outputs, as the kernels read them; None where nothing arrives."""

    def __init__(self, g_BD: Tensor | None, readout_BD: Tensor, lse_B: Tensor | None) -> None:
        self.g_BD = None if g_BD is None else g_BD.contiguous()
        self.lse_B = None if lse_B is None else lse_B.contiguous()
        self.readout_pieces = in_pieces(readout_BD)


class Attention:
    """Room for the attention of some rows and for the gradient of their scores, which one kernel leaves to the next.

    Kernels are given the number of blocks of `ATTENTION_BLOCK` numbers in a row, and so know what divides its length.
    """

    def __init__(self, rows: int, anchors: int, like: Tensor) -> None:
        shape = (pieces_of(like.dtype), rows, padded_anchors(anchors))
        self.attention, self.grad_score = (like.new_empty(shape, dtype=dtype_of_pieces(like.dtype)) for _ in range(2))

    def arguments(self, *names: Literal["attention", "grad_score"]) -> dict[str, Any]:
        """Returns the tensors that are named, and the distances between their rows and between their planes."""
        return {f"{name}_ptr": getattr(self, name) for name in names} | {
            "attention_blocks": self.attention.shape[-1] // ATTENTION_BLOCK,
            "attention_plane": self.attention.stride(0),
            "ATTENTION_BLOCK": ATTENTION_BLOCK,
        }


def blocks_of(size: int, count: int) -> int:
    """Returns the number of blocks of `size` that hold `count`; Triton's `cdiv` takes several times as long."""
    return -(-count // size)


def padded_anchors(anchors: int) -> int:
    """Returns how many numbers a row of attention takes."""
    return blocks_of(ATTENTION_BLOCK, anchors) * ATTENTION_BLOCK


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

    A line has 128 bytes, or more where a thread would otherwise hold more than 16 columns of a row. With 4 KiB of loads
    in flight a thread has 64 registers at most, so that a multiprocessor has room for the 32 programs that it can run.
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
    """Returns the constants of `anchor_totals_kernel`: each thread reads 16 bytes at a time."""
    columns = padded_width(width)
    return {"D": width, "BD": columns, "UNROLL": ENTRIES_AHEAD, "num_warps": max(1, columns // 128)}


def dtype_of_pieces(dtype: torch.dtype) -> torch.dtype:
    """Returns the half precision in which numbers of a dtype enter products."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def in_pieces(x: Tensor) -> Tensor:
    """Returns the planes of half precision whose sum x is: x itself, or (3, ...) bfloat16 for float32."""
    if pieces_of(x.dtype) == 1:
        return x.contiguous()
    first = x.bfloat16()
    second = (x - first).bfloat16()
    return torch.stack([first, second, (x - first - second).bfloat16()])


def rows_in_line(x: Tensor) -> Tensor:
    """Returns x, or a copy of it where the numbers of a row do not lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()
