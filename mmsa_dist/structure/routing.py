"""Rows travel to the ranks that own them, and the answers travel back.

N rows leave this rank, M rows reach it, W ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mmsa_dist.runtime.distributed import is_distributed, world_size


class Route:
    """The way of N rows to their owners. Every rank must make one at the same time, with any N of its own.

    Args:
        owner_N: (N,) int64: the rank that each row goes to; on the device that the process group works on.
    """

    def __init__(self, owner_N: Tensor) -> None:
        self._order_N = owner_N.argsort(stable=True)
        leaving_W = torch.bincount(owner_N, minlength=world_size())
        arriving_W = swap(leaving_W[:, None])[:, 0]
        self._leaving, self._arriving = leaving_W.tolist(), arriving_W.tolist()

    def send(self, rows_N: Tensor) -> Tensor:
        """Sends row n of (N, ...) to its owner; returns the (M, ...) that arrive, by sender and its order."""
        return _all_to_all(rows_N[self._order_N], self._leaving, self._arriving)

    def send_back(self, answers_M: Tensor) -> Tensor:
        """Answers the rows that `send` brought, in the order they came; returns (N, ...) in the order they left."""
        answers_N = _all_to_all(answers_M, self._arriving, self._leaving)
        rows_N = torch.empty_like(answers_N)
        rows_N[self._order_N] = answers_N
        return rows_N


def swap(blocks_WB: Tensor) -> Tensor:
    """Sends block w of (W, ...) to rank w; returns (W, ...) with the block of each rank for this one."""
    if not is_distributed():
        return blocks_WB
    arriving_WB = torch.empty_like(blocks_WB)
    dist.all_to_all_single(arriving_WB, blocks_WB.contiguous())
    return arriving_WB


def _all_to_all(rows: Tensor, leaving: list[int], arriving: list[int]) -> Tensor:
    if not is_distributed():
        return rows
    arrived = rows.new_empty(sum(arriving), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows.contiguous(), arriving, leaving)
    return arrived
